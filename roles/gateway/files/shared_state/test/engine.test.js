// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import assert from "node:assert/strict";
import fs from "node:fs/promises";
import path from "node:path";
import { test } from "node:test";
import { createHooks } from "../lib/hooks.js";
import { doneAnswer, parseRequest } from "../lib/request.js";
import {
  answerMessage,
  engineOf,
  FakeRedis,
  KEY,
  replica,
  temporaryDirectory,
  turn,
  userMessage,
} from "./support/rig.js";

const pair = async (overrides) => {
  const redis = new FakeRedis();
  return { redis, a: await replica(redis, "A", overrides), b: await replica(redis, "B", overrides) };
};

test("any replica continues a conversation", async () => {
  const { redis, a, b } = await pair();
  assert.deepEqual(await turn(a, "m1"), []);
  assert.deepEqual(await turn(b, "m2"), ["m1"]);
  assert.deepEqual(await turn(a, "m3", { local: [userMessage("stale"), answerMessage("x")] }), ["m1", "m2"]);
  assert.deepEqual(redis.texts("web:bob"), ["m1", "m2", "m3"]);
  assert.equal(redis.of({ id: "web:bob" }).owner, null);
});

test("a second turn waits for the first, and sees it", async () => {
  const { a, b } = await pair({ lockWaitMs: 5000 });
  let second;
  await turn(a, "m1", {
    between: async () => {
      second = turn(b, "m2");
    },
  });
  assert.deepEqual(await second, ["m1"]);
});

test("a turn whose lock stays taken goes on without it, and is written after the other", async () => {
  const { redis, a, b } = await pair({ lockWaitMs: 20 });
  await turn(a, "m1", {
    between: async () => {
      await turn(b, "m2");
    },
  });
  assert.equal(b.metrics.get("lock_timeouts"), 1);
  await b.replayer.all();
  assert.deepEqual(redis.texts("web:bob"), ["m1", "m2"]);
  assert.equal(redis.of({ id: "web:bob" }).turns[1].late, true);
});

test("a frozen holder reads again what came between when it assembles again", async () => {
  const { redis, a, b } = await pair();
  await turn(a, "m1", {
    between: async (engine) => {
      redis.of({ id: "web:bob" }).owner = null; // its lease ran out
      await turn(b, "m2");
      const { messages } = await engine.assemble({ sessionKey: KEY, sessionId: "s", messages: [], prompt: "m1" });
      assert.equal(messages[0].content, "m2");
    },
  });
  assert.deepEqual(redis.texts("web:bob"), ["m2", "m1"]);
  assert.equal(redis.of({ id: "web:bob" }).turns[1].late, undefined);
});

test("an overtaken turn is written after the one that overtook it, flagged and counted", async () => {
  const { redis, a, b } = await pair();
  await turn(a, "m1", {
    between: async () => {
      redis.of({ id: "web:bob" }).owner = null;
      await turn(b, "m2");
    },
  });
  assert.deepEqual(redis.texts("web:bob"), ["m2", "m1"]);
  assert.equal(redis.of({ id: "web:bob" }).turns[1].late, true);
  assert.equal(a.metrics.get("turns_fenced"), 1);
  assert.equal(a.metrics.get("turns_late"), 1);
  assert.equal(a.spool.size, 0);
});

test("on our own route an overtaken turn is refused, not written", async () => {
  const { redis, a, b } = await pair();
  const reservation = { lock: null, message: "m1", outcome: undefined, idempotent: () => ({}) };
  a.reservations.set(KEY, reservation);
  await turn(a, "m1", {
    between: async () => {
      redis.of({ id: "web:bob" }).owner = null;
      await turn(b, "m2");
    },
  });
  assert.equal(reservation.outcome, "refused");
  assert.deepEqual(redis.texts("web:bob"), ["m2"]);
  assert.equal(a.spool.size, 0);
});

test("a lock lost in a failover does not matter while nobody came between", async () => {
  const { redis, a } = await pair();
  await turn(a, "m1", {
    between: async () => {
      redis.of({ id: "web:bob" }).owner = null;
    },
  });
  assert.equal(redis.of({ id: "web:bob" }).turns[0].late, undefined);
  assert.equal(a.metrics.get("turns_fenced"), 0);
});

test("Redis away: answers go on, turns are kept and written in order when it is back", async () => {
  const { redis, a, b } = await pair();
  await turn(a, "m1");
  await turn(b, "m2");
  await turn(a, "m3");
  redis.away = true;
  assert.deepEqual(await turn(a, "m4"), ["m1", "m2", "m3"]);
  assert.deepEqual(await turn(a, "m5"), ["m1", "m2", "m3", "m4"]);
  assert.equal(a.spool.size, 2);
  redis.away = false;
  assert.deepEqual(await turn(a, "m6"), ["m1", "m2", "m3", "m4", "m5"]);
  assert.deepEqual(redis.texts("web:bob"), ["m1", "m2", "m3", "m4", "m5", "m6"]);
  assert.equal(a.spool.size, 0);
  assert.equal(
    redis.of({ id: "web:bob" }).turns.some(({ late }) => late),
    false,
  );
});

test("Redis away and nothing remembered: the local transcript is used, without what was never answered", async () => {
  const { redis, a } = await pair();
  redis.away = true;
  const local = [userMessage("l1"), answerMessage("x"), userMessage("hung up")];
  assert.deepEqual(await turn(a, "m1", { local }), ["l1"]);
});

test("Redis goes away during a turn: the turn is kept", async () => {
  const { redis, a } = await pair();
  await turn(a, "m1", {
    between: async () => {
      redis.away = true;
    },
  });
  assert.equal(a.spool.size, 1);
  redis.away = false;
  await a.replayer.all();
  assert.deepEqual(redis.texts("web:bob"), ["m1"]);
});

test("the gateway hands one engine's turn to another: it is written once, by its own", async () => {
  const { redis, a } = await pair();
  const other = engineOf(a);
  await other.assemble({ sessionKey: "agent:main:api:web:ann", sessionId: "t", messages: [], prompt: "x" });
  const reservation = { lock: null, message: "m1", outcome: undefined, idempotent: () => ({}) };
  a.reservations.set(KEY, reservation);
  await turn(a, "m1", {
    between: async () => {
      const params = { advancementKey: "id-m1", sessionKey: KEY, messages: [userMessage("m1"), answerMessage("ok")] };
      assert.deepEqual(await other.commitTurn(params), { status: "committed" });
      assert.deepEqual(await other.commitTurn(params), { status: "duplicate" });
    },
  });
  assert.deepEqual(redis.texts("web:bob"), ["m1"]);
  assert.deepEqual(redis.texts("web:ann"), []);
  assert.equal(reservation.outcome, "committed");
  assert.equal(a.metrics.get("turns_late"), 0);
});

test("a turn left over from a crash is written by whoever gets it", async () => {
  const { redis, a, b } = await pair();
  await turn(b, "m1");
  await engineOf(a).commitTurn({
    advancementKey: "old",
    sessionKey: KEY,
    messages: [userMessage("m0"), answerMessage("ok")],
  });
  assert.deepEqual(redis.texts("web:bob").sort(), ["m0", "m1"]);
});

/**
 * A gateway that died between the end of a turn and its commit, and its next life.
 * @returns {Promise<{life: object, deliver: () => Promise<object>}>} deliver: as the gateway empties its outbox
 */
async function diedBeforeCommit(redis, text, key) {
  const spoolDir = await temporaryDirectory();
  const first = await replica(redis, "A", { spoolDir });
  const request = parseRequest(JSON.stringify({ channel: "web", user_id: "bob", message: text }), key);
  await first.asked.begin(KEY, request);
  const at = Date.now();
  const messages = [{ ...userMessage(text), timestamp: at }, answerMessage(`re ${text}`)];
  const life = await replica(redis, "A", { spoolDir });
  const deliver = () => engineOf(life).commitTurn({ advancementKey: `id-${text}`, sessionKey: KEY, messages });
  return { life, deliver, spoolDir, request };
}

test("a turn left over from a crash is not stored when its repetition was answered by another replica", async () => {
  const redis = new FakeRedis();
  const { life, deliver, request } = await diedBeforeCommit(redis, "m1", "k");
  redis.claims.set("k", doneAnswer(request, { reply: "by B" }));
  await deliver();
  assert.deepEqual(redis.texts("web:bob"), []);
  assert.equal(life.metrics.get("turns_answered"), 1);
});

test("a turn left over from a crash is the answer to its repetition when it comes first", async () => {
  const redis = new FakeRedis();
  const { deliver, request } = await diedBeforeCommit(redis, "m1", "k");
  redis.claims.set("k", { state: "running", owner: "B", fingerprint: request.fingerprint });
  await deliver();
  assert.deepEqual(redis.texts("web:bob"), ["m1"]);
  assert.equal(redis.claims.get("k").state, "done");
  assert.deepEqual(redis.claims.get("k").body, { reply: "re m1", channel: "web", user_id: "bob", replica: "A" });
});

test("a turn of this life does not take the key of one that died", async () => {
  const redis = new FakeRedis();
  const { life, request } = await diedBeforeCommit(redis, "m1", "k");
  redis.claims.set("k", doneAnswer(request, { reply: "by B" }));
  await engineOf(life).commitTurn({
    advancementKey: "id-m2",
    sessionKey: KEY,
    messages: [{ ...userMessage("m2"), timestamp: Date.now() + 1 }, answerMessage("ok")],
  });
  assert.deepEqual(redis.texts("web:bob"), ["m2"]);
});

test("without a key, and after a note that is older than it has a meaning, a left over turn is stored", async () => {
  const redis = new FakeRedis();
  await (await diedBeforeCommit(redis, "m1", undefined)).deliver();
  const { spoolDir } = await diedBeforeCommit(redis, "m2", "k");
  const [name] = await fs.readdir(path.join(spoolDir, "asked"));
  const note = path.join(spoolDir, "asked", name);
  await fs.writeFile(note, JSON.stringify({ ...JSON.parse(await fs.readFile(note)), at: Date.now() - 120000 }));
  await fs.writeFile(path.join(spoolDir, "asked", "half.json"), '{"at":');
  const life = await replica(redis, "A", { spoolDir });
  redis.claims.set("k", { state: "done", fingerprint: "", body: {} });
  await engineOf(life).commitTurn({
    advancementKey: "id-m2",
    sessionKey: KEY,
    messages: [{ ...userMessage("m2"), timestamp: Date.now() }, answerMessage("ok")],
  });
  assert.deepEqual(redis.texts("web:bob"), ["m1", "m2"]);
  assert.deepEqual(await fs.readdir(path.join(spoolDir, "asked")), []);
});

/** A turn whose answer the gateway has and does not hand over. @returns {Promise<object>} its local user message */
async function unhanded(runtime, text, end = answerMessage("ok")) {
  const engine = engineOf(runtime);
  const { messages } = await engine.assemble({ sessionKey: KEY, sessionId: "s", messages: [], prompt: text });
  const asked = userMessage(text);
  await createHooks(async () => runtime).agent_end(
    { success: true, messages: [...messages, asked, end] },
    { sessionKey: KEY },
  );
  await engine.dispose();
  return asked;
}

test("a turn that was answered and not handed over is stored all the same, once", async () => {
  const { redis, a, b } = await pair();
  await turn(b, "m1");
  const asked = await unhanded(a, "m2");
  assert.deepEqual(redis.texts("web:bob"), ["m1", "m2"]);
  assert.equal(a.metrics.get("turns_unhanded"), 1);
  const late = { advancementKey: "late", sessionKey: KEY, messages: [asked, answerMessage("ok")] };
  assert.deepEqual(await engineOf(a).commitTurn(late), { status: "duplicate" });
  assert.deepEqual(await turn(b, "m3"), ["m1", "m2"]);
  assert.deepEqual(redis.texts("web:bob"), ["m1", "m2", "m3"]);
});

test("not handed over while Redis is away: it is kept once", async () => {
  const { redis, a } = await pair();
  redis.away = true;
  const asked = await unhanded(a, "m1");
  const late = { advancementKey: "late", sessionKey: KEY, messages: [asked, answerMessage("ok")] };
  assert.deepEqual(await engineOf(a).commitTurn(late), { status: "duplicate" });
  redis.away = false;
  await a.replayer.all();
  assert.deepEqual(redis.texts("web:bob"), ["m1"]);
});

test("handed over to the next life of the gateway, while Redis is away: it is stored once", async () => {
  const redis = new FakeRedis();
  const asked = await unhanded(await replica(redis, "A"), "m1");
  const life = await replica(redis, "A");
  redis.away = true;
  await engineOf(life).commitTurn({ advancementKey: "late", sessionKey: KEY, messages: [asked, answerMessage("ok")] });
  redis.away = false;
  await life.replayer.all();
  assert.deepEqual(redis.texts("web:bob"), ["m1"]);
  assert.equal(life.spool.size, 0);
  assert.equal(redis.of({ id: "web:bob" }).owner, null);
});

test("a run that ended without an answer is given up", async () => {
  const { redis, a } = await pair();
  await unhanded(a, "m1", { ...answerMessage("half"), stopReason: "aborted" });
  assert.deepEqual(redis.texts("web:bob"), []);
  assert.equal(a.metrics.get("turns_given_up"), 1);
});

test("a turn that no replica confirmed stays on record until one does", async () => {
  const { redis, a } = await pair();
  redis.confirmed = false;
  await turn(a, "m1");
  assert.equal(a.spool.size, 1);
  assert.equal(a.spool.blocks("web:bob"), false);
  redis.conversations.clear(); // the primary died before it replicated
  redis.confirmed = true;
  await a.replayer.all();
  assert.deepEqual(redis.texts("web:bob"), ["m1"]);
  assert.equal(a.metrics.get("turns_restored"), 1);
  assert.equal(a.spool.size, 0);
});

test("history is trimmed by the smallest budget of the turn", async () => {
  const { a } = await pair();
  await turn(a, "x".repeat(4000));
  await turn(a, "y".repeat(4000));
  const engine = engineOf(a);
  const shown = async (tokenBudget, messages = []) =>
    (await engine.assemble({ sessionKey: KEY, sessionId: "s", messages, prompt: "m", tokenBudget })).messages.length;
  assert.equal(await shown(1500), 2);
  assert.equal(await shown(30000), 2);
  await engine.dispose();
});

test("compaction shrinks Redis, and the third one leaves nothing", async () => {
  const { redis, a } = await pair();
  for (let i = 0; i < 8; i += 1) await turn(a, `m${i} ${"x".repeat(2000)}`);
  const engine = engineOf(a);
  const params = { sessionKey: KEY, sessionId: "s", messages: [], prompt: "m", tokenBudget: 100000 };
  await engine.assemble(params);
  const sizes = [];
  for (let i = 0; i < 3; i += 1) {
    assert.equal((await engine.compact({ sessionKey: KEY })).compacted, true);
    const { messages } = await engine.assemble(params);
    sizes.push([redis.texts("web:bob").length, messages.length / 2]);
  }
  await engine.dispose();
  assert.equal(sizes[0][0], 4);
  assert.ok(sizes[1][0] < sizes[0][0]);
  assert.deepEqual(sizes[2], [0, 0]);
});

test("internal sessions pass through and touch nothing", async () => {
  const { redis, a } = await pair();
  const engine = engineOf(a);
  const sessionKey = "agent:main:internal-session-effects:run-1";
  const messages = [userMessage("x")];
  assert.equal((await engine.assemble({ sessionKey, sessionId: "s", messages, prompt: "y" })).messages, messages);
  assert.deepEqual(await engine.commitTurn({ advancementKey: "k", sessionKey, messages }), { status: "committed" });
  assert.equal((await engine.compact({ sessionKey })).compacted, false);
  await engine.dispose();
  assert.equal(redis.conversations.size, 0);
});

test("reset forgets the conversation, also what was kept from before it", async () => {
  const { redis, a } = await pair();
  const conv = { channel: "web", user: "bob", id: "web:bob" };
  await turn(a, "m1");
  redis.away = true;
  await turn(a, "m2");
  await a.reset(conv);
  assert.deepEqual(a.spool.pendingTurns("web:bob"), []);
  assert.deepEqual(await turn(a, "m3"), []);
  redis.away = false;
  await a.replayer.all();
  assert.deepEqual(redis.texts("web:bob"), ["m3"]);
});

test("a dropped history stays dropped, whatever replicas remember, and its numbers go on", async () => {
  const { redis, a, b } = await pair();
  const conv = redis.of({ id: "web:bob" });
  const numbers = () => conv.turns.map(({ seq, late }) => [seq, late]);
  await turn(a, "m1");
  await turn(b, "m2");
  conv.turns = []; // what making room does
  redis.away = true;
  assert.deepEqual(await turn(b, "m3"), ["m1", "m2"], "better than nothing while Redis is away");
  redis.away = false;
  assert.deepEqual(await turn(a, "m4"), [], "Redis has no history, and the kept turn is elsewhere");
  await b.replayer.all();
  assert.deepEqual(redis.texts("web:bob").toSorted(), ["m3", "m4"]);
  assert.deepEqual(numbers(), [
    [3, undefined],
    [4, true],
  ]);
  assert.deepEqual((await turn(a, "m5")).toSorted(), ["m3", "m4"]);
  assert.deepEqual((await turn(b, "m6")).toSorted(), ["m3", "m4", "m5"]);
  assert.equal(conv.seq, 6);
});
