// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  cleanTurn,
  estimateAll,
  estimateTokens,
  mergePending,
  replyOf,
  trimTurns,
  turnsOf,
  turnSuffix,
} from "../lib/history.js";

let clock = 0;
const user = (text) => ({ role: "user", content: text, timestamp: clock++ });
const answer = (text, stopReason = "stop") => ({
  role: "assistant",
  content: [{ type: "text", text }],
  stopReason,
  timestamp: clock++,
});
const call = (...ids) => ({
  role: "assistant",
  stopReason: "toolUse",
  timestamp: clock++,
  content: ids.map((id) => ({ type: "toolCall", id, name: "ls", arguments: {} })),
});
const result = (id, text = "x") => ({
  role: "toolResult",
  toolCallId: id,
  content: [{ type: "text", text }],
  timestamp: clock++,
});
const turn = (id, ...messages) => ({ id, messages });

test("an aborted attempt and host notes are not kept", () => {
  const kept = cleanTurn([
    user("a"),
    answer("", "aborted"),
    { role: "custom", customType: "openclaw:turn-aborted" },
    answer("b"),
  ]);
  assert.deepEqual(
    kept.map(({ role }) => role),
    ["user", "assistant"],
  );
  assert.equal(replyOf(kept), "b");
});

test("parallel tool calls stay with their results", () => {
  const messages = [user("a"), call("1", "2"), result("1"), result("2"), answer("b")];
  assert.deepEqual(cleanTurn(messages), messages);
});

test("half a tool call is not kept", () => {
  const kept = cleanTurn([user("a"), call("1", "2"), result("1"), result("9"), call("3"), answer("b")]);
  assert.deepEqual(
    kept.map(({ role }) => role),
    ["user", "assistant", "toolResult", "assistant"],
  );
  assert.deepEqual(
    kept[1].content.map(({ id }) => id),
    ["1"],
  );
});

test("a result before its call is not kept", () => {
  assert.deepEqual(
    cleanTurn([user("a"), result("1"), call("1"), answer("b")]).filter(({ role }) => role === "toolResult"),
    [],
  );
});

test("history is cut between turns, oldest first", () => {
  const turns = ["a", "b", "c"].map((id) => turn(id, user(id.repeat(400)), answer("ok")));
  const cost = estimateAll(turns[0].messages);
  assert.deepEqual(
    trimTurns(turns, cost * 2).map(({ id }) => id),
    ["b", "c"],
  );
  assert.deepEqual(
    trimTurns(turns, cost * 2 - 1).map(({ id }) => id),
    ["c"],
  );
  assert.deepEqual(trimTurns(turns, undefined), turns);
  assert.deepEqual(trimTurns([], 10), []);
});

test("the newest turn is shown without its tool traffic rather than not at all", () => {
  const big = turn("big", user("q"), call("1"), result("1", "x".repeat(9000)), answer("a"));
  const [old, newest] = trimTurns([turn("old", user("o"), answer("p")), big], 100);
  assert.equal(old.id, "old");
  assert.deepEqual(
    newest.messages.map(({ role }) => role),
    ["user", "assistant"],
  );
  assert.equal(big.messages.length, 4);
});

test("nothing fits: nothing is shown", () => {
  assert.deepEqual(trimTurns([turn("a", user("x".repeat(9000)), answer("b"))], 100), []);
});

test("a shorter turn behind one that does not fit is not shown: no gaps", () => {
  const turns = [
    turn("a", user("a"), answer("a")),
    turn("b", user("b".repeat(4000)), answer("b")),
    turn("c", user("c"), answer("c")),
  ];
  assert.deepEqual(
    trimTurns(turns, 200).map(({ id }) => id),
    ["c"],
  );
});

test("tokens are estimated from bytes", () => {
  assert.equal(estimateTokens({ content: "abcd" }), Math.ceil(6 / 4) + 8);
  assert.ok(estimateTokens({ content: "жжжж" }) > estimateTokens({ content: "abcd" }));
});

test("suffix after what was assembled before", () => {
  const history = [user("1"), answer("1")];
  const now = [user("2"), call("1"), result("1")];
  assert.deepEqual(turnSuffix([...history, ...now], 0, history), now);
  assert.deepEqual(turnSuffix([...history, ...now], 7, history), now);
  assert.deepEqual(turnSuffix(history, 0, history), []);
});

test("suffix after the local transcript", () => {
  const local = [user("l"), answer("l")];
  const history = [user("1"), answer("1"), user("2"), answer("2")];
  const now = [user("3"), { role: "custom", timestamp: 99 }];
  assert.deepEqual(turnSuffix([...local, ...now], local.length, history), now);
  assert.deepEqual(turnSuffix([...local, ...now], local.length, []), now);
  assert.deepEqual(turnSuffix(now, 0, []), now);
});

test("a transcript that merely is as long is not taken for the assembled one", () => {
  const local = [user("l"), answer("l"), user("m"), answer("m")];
  const history = [user("1"), answer("1")];
  const now = [user("now")];
  assert.deepEqual(turnSuffix([...local, ...now], local.length, history), now);
});

test("local turns: what was never answered is left out", () => {
  const turns = turnsOf([
    user("a"),
    answer("b"),
    user("hung up"),
    user("c"),
    answer("", "aborted"),
    user("d"),
    answer("e"),
  ]);
  assert.deepEqual(
    turns.map(({ messages }) => messages[0].content),
    ["a", "d"],
  );
  assert.deepEqual(turnsOf([]), []);
});

test("pending turns follow, each once", () => {
  const [a, b, c] = ["a", "b", "c"].map((id) => turn(id));
  assert.deepEqual(mergePending([a, b], [b, c]), [a, b, c]);
});
