// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { createHooks } from "../lib/hooks.js";
import { Transcript } from "../lib/transcript.js";
import { answerMessage, engineOf, FakeRedis, KEY, LocalTranscripts, replica, turn, userMessage } from "./support/rig.js";

const BORN_AT = Date.now();
const SESSION = { agentId: "main", sessionKey: KEY, sessionId: "s" };

let local, said, transcript;

beforeEach(() => {
  local = new LocalTranscripts();
  said = [];
  const log = { info: (text) => said.push(text), warn: (text) => said.push(text) };
  transcript = new Transcript({ log, sdk: async () => local, bornAt: BORN_AT });
});

/** What somebody said, so many milliseconds after this gateway was born. */
const add = (message, after) =>
  local.appendSessionTranscriptMessageByIdentity({ ...SESSION, message: { ...message, timestamp: BORN_AT + after } });
const roles = () => local.entries("s").map(({ role }) => role);

test("a message that the last life left without an answer gets an end that says nothing", async () => {
  await add(userMessage("one"), -9000);
  await add(answerMessage("ok"), -8000);
  await add(userMessage("two"), -1);
  await transcript.closeInterrupted(SESSION);
  assert.deepEqual(roles(), ["user", "assistant", "user", "assistant"]);
  const { agentId, sessionKey, message } = local.entries("s").at(-1);
  assert.deepEqual([agentId, sessionKey, message.stopReason, message.content], ["main", KEY, "aborted", [{ type: "text", text: "" }]]);
  assert.match(said.join(), /agent:main:api:web:bob/);
});

test("what has its end, and what this life began, is left alone", async () => {
  await transcript.closeInterrupted(SESSION);
  assert.deepEqual(roles(), []);
  await add(answerMessage("ok"), -1);
  await transcript.closeInterrupted({ ...SESSION, sessionId: "other" });
  await new Transcript({ sdk: async () => local, bornAt: BORN_AT }).closeInterrupted(SESSION);
  assert.deepEqual(roles(), ["assistant"]);
  await add(userMessage("of a channel, which writes it down before the turn"), 0);
  await new Transcript({ sdk: async () => local, bornAt: BORN_AT }).closeInterrupted(SESSION);
  assert.deepEqual(roles(), ["assistant", "user"]);
});

test("each session is looked at once, and those that nobody shares not at all", async () => {
  await transcript.closeInterrupted(SESSION);
  await transcript.closeInterrupted(SESSION);
  await transcript.closeInterrupted({ sessionKey: "agent:main:cron:report", sessionId: "c" });
  await transcript.closeInterrupted({ sessionKey: KEY });
  await transcript.closeInterrupted({});
  assert.equal(local.reads, 1);
});

test("a transcript that cannot be read or written fails no turn, and is looked at again", async () => {
  await add(userMessage("two"), -1);
  const read = local.readVisibleSessionTranscriptMessageEntries;
  local.readVisibleSessionTranscriptMessageEntries = () => Promise.reject(new Error("database is locked"));
  await transcript.closeInterrupted(SESSION);
  assert.match(said.join(), /database is locked/);
  local.readVisibleSessionTranscriptMessageEntries = read;
  await transcript.closeInterrupted(SESSION);
  assert.deepEqual(roles(), ["user", "assistant"]);
});

test("two that look at once both wait until it is closed", async () => {
  await add(userMessage("two"), -1);
  const { promise, resolve } = Promise.withResolvers();
  const append = local.appendSessionTranscriptMessageByIdentity.bind(local);
  local.appendSessionTranscriptMessageByIdentity = async (entry) => promise.then(() => append(entry));
  const first = transcript.closeInterrupted(SESSION);
  await new Promise(setImmediate);
  const second = transcript.closeInterrupted(SESSION).then(roles);
  await new Promise(setImmediate);
  resolve();
  await first;
  assert.equal((await second)[1], "assistant");
});

test("before a turn reads its transcript, the hook looks", async () => {
  const runtime = await replica(new FakeRedis(), "a");
  const ctx = { sessionKey: KEY, sessionId: "s", modelProviderId: "cloud", modelId: "m" };
  await runtime.local.appendSessionTranscriptMessageByIdentity({ ...SESSION, message: { ...userMessage("two"), timestamp: 0 } });
  await createHooks(async () => runtime).before_model_resolve({}, ctx);
  assert.deepEqual(runtime.local.entries("s").map(({ role }) => role), ["user", "assistant"]);
});

test("a turn that is given up gets its end, one that is committed has it", async () => {
  const runtime = await replica(new FakeRedis(), "a");
  await turn(runtime, "one");
  assert.deepEqual(runtime.local.entries("s"), []);
  const engine = engineOf(runtime);
  await engine.assemble({ sessionKey: KEY, sessionId: "s", messages: [], prompt: "two" });
  await engine.dispose();
  assert.deepEqual(runtime.local.entries("s").map(({ role, message }) => [role, message.stopReason]), [["assistant", "aborted"]]);
});
