// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import assert from "node:assert/strict";
import { beforeEach, mock, test } from "node:test";
import { Claim } from "../lib/claim.js";
import { createHooks } from "../lib/hooks.js";
import { FakeRedis, replica } from "./support/rig.js";

const SESSION = "agent:main:telegram:direct:42";
const CTX = { channelId: "telegram", accountId: "default", conversationId: "42", sessionKey: SESSION };
const KEY = "telegram/default/42/7";

let redis, a, b, say;

/** A gateway whose diagnostics say what they are told to say. */
const gateway = (on = true) => {
  const listeners = new Set();
  return {
    say: async (event) => {
      for (const listener of listeners) listener({ sessionKey: SESSION, messageId: "7", ...event });
      await new Promise(setImmediate);
    },
    sdk: {
      areDiagnosticsEnabledForProcess: () => on,
      onInternalDiagnosticEvent: (listener, filter) => {
        assert.deepEqual(filter, { include: ["message.processed"] });
        listeners.add(listener);
        return () => listeners.delete(listener);
      },
    },
  };
};

beforeEach(async () => {
  redis = new FakeRedis();
  a = await replica(redis, "a");
  b = await replica(redis, "b");
  const { say: saying, sdk } = gateway();
  say = saying;
  a.inbound.start(sdk);
  b.inbound.start(gateway().sdk);
});

const state = () => redis.claims.get(KEY)?.state;
const begin = (runtime, messageId = "7") => createHooks(async () => runtime).before_dispatch({ messageId, content: "hi" }, CTX);

/** What a promise has come to by now, "pending" when nothing. */
const now = (promise) => Promise.race([promise, new Promise((resolve) => setTimeout(resolve, 150, "pending"))]);

test("a message that comes to two replicas is answered once, and the second waits until it is", async () => {
  assert.equal(await begin(a), undefined);
  const second = begin(b);
  assert.equal(await now(second), "pending");
  await a.inbound.committed(SESSION);
  assert.deepEqual(await second, { handled: true });
  assert.equal(state(), "committed", "the gateway is not through with it");
  await say({ outcome: "completed" });
  assert.equal(state(), "done");
  assert.deepEqual(await begin(a), { handled: true });
  assert.equal(a.metrics.get("webhooks_duplicate") + b.metrics.get("webhooks_duplicate"), 2);
});

test("done never becomes less than done", async () => {
  await begin(a);
  await say({ outcome: "completed" });
  await a.inbound.committed(SESSION);
  assert.equal(state(), "done");
});

test("only the message that is processed is settled", async () => {
  await begin(a);
  await begin(a, "8");
  await say({ outcome: "completed", messageId: 8 });
  assert.equal(state(), "running");
  assert.equal(redis.claims.get("telegram/default/42/8").state, "done");
  await say({ outcome: "completed", sessionKey: "agent:main:telegram:direct:43" });
  assert.equal(state(), "running");
});

test("what failed without a word is given back; what its user was told of is not", async () => {
  const { message_sending: sending, message_sent: messageSent } = createHooks(async () => a);
  await begin(a);
  await sending({ content: "Something went wrong" }, { sessionKey: SESSION });
  await messageSent({ success: false }, { sessionKey: SESSION });
  await a.inbound.givenUp(SESSION);
  await say({ outcome: "error" });
  assert.equal(state(), undefined);
  assert.equal(await begin(b), undefined, "a second chance");
  await b.inbound.stop();
  await b.inbound.givenUp(SESSION);
  await begin(a);
  await messageSent({ success: true }, { sessionKey: SESSION });
  await say({ outcome: "error" });
  assert.equal(state(), "done");
});

test("an answer that the provider did not take is told of, unless a later try went well", async () => {
  const { message_sending: sending, message_sent: messageSent } = createHooks(async () => a);
  await begin(a);
  await a.inbound.committed(SESSION);
  await sending({ content: "hi" }, { sessionKey: SESSION });
  await say({ outcome: "completed" });
  assert.equal(state(), "unsent");
  assert.deepEqual(await begin(b), { handled: true }, "its turn is not run again");
  redis.claims.clear();
  await begin(a);
  await a.inbound.committed(SESSION);
  for (const success of [false, true]) {
    await sending({ content: "hi" }, { sessionKey: SESSION });
    await messageSent({ success }, { sessionKey: SESSION });
  }
  await say({ outcome: "completed" });
  assert.equal(state(), "done");
});

test("a turn that was committed is not run again, whatever its gateway says then", async () => {
  await begin(a);
  await a.inbound.committed(SESSION);
  await say({ outcome: "error" });
  assert.equal(state(), "done");
});

test("a dispatch that was broken off gives its message back, one that was refused does not", async () => {
  for (const [reason, left] of [["reply_operation_aborted", undefined], ["reply-operation-active", undefined], ["queue-cap", "done"]]) {
    await begin(a);
    await say({ outcome: "skipped", reason });
    assert.equal(state(), left, reason);
  }
});

test("without the gateway's diagnostics a commit is the end, and a given-up turn gives its message back", async () => {
  for (const sdk of [null, gateway(false).sdk]) {
    redis.claims.clear();
    a.inbound.stop();
    a.inbound.start(sdk);
    await begin(a);
    await a.inbound.givenUp(SESSION);
    assert.equal(state(), undefined);
    await begin(a);
    await a.inbound.committed(SESSION);
    assert.equal(state(), "done");
  }
});

test("what is settled while Redis is away is stored when it is back", async () => {
  await begin(a);
  redis.away = true;
  const settled = a.inbound.processed({ sessionKey: SESSION, messageId: "7", outcome: "completed" });
  assert.equal(await now(settled), "pending");
  redis.away = false;
  await settled;
  assert.equal(state(), "done");
});

test("while Redis is away a message is run all the same, once here", async () => {
  redis.away = true;
  assert.equal(await begin(a), undefined);
  assert.deepEqual(await begin(a), { handled: true });
});

test("what has no message id is nobody's to claim", async () => {
  assert.equal(await createHooks(async () => a).before_dispatch({ content: "hi" }, CTX), undefined);
  assert.equal(redis.claims.size, 0);
});

test("a gateway that stood still neither runs a turn nor answers when another one has its message", async () => {
  const hooks = createHooks(async () => a);
  await begin(a);
  assert.equal(await a.inbound.lost(SESSION), false);
  assert.equal(await hooks.message_sending({ content: "hi" }, { sessionKey: SESSION }), undefined);
  redis.claims.delete(KEY); // its lease ended
  assert.equal(await a.inbound.lost(SESSION), false, "nobody has it, so it is ours again");
  redis.claims.delete(KEY);
  assert.equal(await begin(b), undefined);
  assert.equal((await hooks.before_agent_run({}, { sessionKey: SESSION })).outcome, "block");
  assert.equal((await hooks.message_sending({ content: "blocked" }, { sessionKey: SESSION })).cancel, true);
  await a.inbound.committed(SESSION);
  await say({ outcome: "completed" });
  assert.equal(state(), "running", "what is b's is left alone");
  assert.equal(await hooks.message_sending({ content: "later" }, { sessionKey: SESSION }), undefined);
});

test("one that stood still between its turn's begin and its end does not answer either", async () => {
  const hooks = createHooks(async () => a);
  await begin(a);
  assert.equal(await hooks.before_agent_run({}, { sessionKey: SESSION }), undefined);
  redis.claims.delete(KEY);
  await begin(b);
  await b.inbound.committed(SESSION);
  await a.inbound.committed(SESSION);
  assert.equal((await hooks.message_sending({ content: "hi" }, { sessionKey: SESSION })).cancel, true);
});

test("while Redis is away a message is nobody else's", async () => {
  await begin(a);
  redis.away = true;
  assert.equal(await a.inbound.lost(SESSION), false);
});

test("while Redis is away neither a turn's end nor its giving up waits for a claim", async () => {
  const hooks = createHooks(async () => ({ ...a, inbound: a.inbound, metrics: a.metrics, breaker: { attemptEnded: async () => {} } }));
  await begin(a);
  redis.away = true;
  const ended = hooks.agent_end({ success: true, messages: [] }, { sessionKey: SESSION }).then(() => "ended");
  assert.equal(await now(ended), "ended");
  redis.away = false;
});

test("a gateway that stops listening leaves nobody waiting for what is committed", async () => {
  await begin(a);
  await begin(a, "8");
  await a.inbound.committed(SESSION);
  redis.claims.delete("telegram/default/42/8");
  a.inbound.stop();
  await new Promise(setImmediate);
  assert.equal(state(), "done");
});

test("a claim that somebody else has got is not taken back when they give it up", async () => {
  mock.timers.enable({ apis: ["setInterval"] });
  try {
    const [mine, theirs] = ["a", "b"].map((owner) => new Claim(redis.store(a.metrics), "k", owner));
    await mine.take({ waitMs: 0, keepMs: 60000 });
    redis.claims.delete("k");
    await theirs.take({ waitMs: 0, keepMs: 60000 });
    assert.equal(await mine.lost(), true);
    await theirs.settle(null);
    mock.timers.tick(20000);
    await new Promise(setImmediate);
    assert.equal(redis.claims.has("k"), false);
  } finally {
    mock.timers.reset();
  }
});
