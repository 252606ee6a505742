// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import assert from "node:assert/strict";
import { once } from "node:events";
import fs from "node:fs/promises";
import path from "node:path";
import { after, before, test } from "node:test";
import { createHooks } from "../lib/hooks.js";
import { parseRequest } from "../lib/request.js";
import {
  answerMessage,
  assemble,
  engineOf,
  FakeRedis,
  gateway,
  KEY,
  post,
  replica,
  userMessage,
} from "./support/rig.js";

let redis;
let a;
let b;
let servers;
let turns;
let behaviour;

const serve = (runtime) =>
  gateway(runtime, (context) => {
    turns += 1;
    return behaviour(context);
  });

before(async () => {
  redis = new FakeRedis();
  a = await replica(redis, "A", { messageMaxBytes: 500, routeWaitMs: 2000 });
  b = await replica(redis, "B", { messageMaxBytes: 500, routeWaitMs: 2000 });
  servers = [await serve(a), await serve(b)];
});
test.beforeEach(() => {
  turns = 0;
  behaviour = assemble;
  redis.away = false;
  redis.conversations.clear();
  redis.claims.clear();
  redis.buckets.clear();
  for (const runtime of [a, b]) delete runtime.config.rateLimit;
});
after(() =>
  servers.forEach((server) => {
    server.close();
    server.closeAllConnections();
  }),
);

test("an answer", async () => {
  const { status, reply, channel, user_id: user, replica: name } = await post(a, "hi");
  assert.deepEqual(
    { status, reply, channel, user, name },
    { status: 200, reply: "re hi", channel: "web", user: "bob", name: "A" },
  );
  assert.deepEqual(redis.texts("web:bob"), ["hi"]);
});

test("message_id comes back and is a key", async () => {
  const body = JSON.stringify({ channel: "web", user_id: "bob", message: "hi", message_id: "m-1" });
  assert.equal((await post(a, "", { body })).message_id, "m-1");
  assert.equal((await post(b, "", { body })).replica, "A");
  assert.equal(turns, 1);
});

test("an answer that was given without the conversation's history is not passed on", async () => {
  const hooks = createHooks(async () => a);
  behaviour = async (context) => {
    await hooks.before_agent_run({}, { sessionKey: context.sessionKey });
    if (turns > 1) return assemble(context);
    return "unhanded";
  };
  const { status, reply } = await post(a, "hi");
  assert.deepEqual([status, reply, turns], [200, "re hi", 2]);
  assert.deepEqual(redis.texts("web:bob"), ["hi"]);
  assert.equal(a.metrics.get("turns_without_history"), 1);
});

test("an answer that is neither stored nor kept is not passed on", async () => {
  behaviour = async (context) => {
    await assemble(context);
    return "unhanded";
  };
  const { status, error } = await post(a, "hi");
  assert.deepEqual([status, error.code], [503, "outcome_unknown"]);
});

test("a command that needs no model is answered", async () => {
  behaviour = async () => "unhanded";
  assert.equal((await post(a, "/status")).status, 200);
});

test("a turn's connection that breaks half-way leaves its outcome unknown", async () => {
  behaviour = async (context) => {
    await assemble(context);
    context.req.socket.destroy();
  };
  const { status, error } = await post(a, "hi");
  assert.deepEqual([status, error.code], [503, "outcome_unknown"]);
});

test("one key, two replicas at once: one turn, one answer", async () => {
  behaviour = async (context) => {
    await assemble(context);
    await new Promise((resolve) => setTimeout(resolve, 150));
  };
  const [one, two] = await Promise.all([post(a, "hi", { key: "k" }), post(b, "hi", { key: "k" })]);
  assert.equal(one.reply, two.reply);
  assert.equal(one.replica, two.replica);
  assert.equal(turns, 1);
  assert.deepEqual([one, two].map(({ headers }) => headers.get("idempotency-replayed")).sort(), ["true", null].sort());
});

test("a key for another message is refused", async () => {
  await post(a, "hi", { key: "k" });
  const { status, error } = await post(b, "ho", { key: "k" });
  assert.deepEqual([status, error.code], [422, "idempotency_key_reused"]);
});

test("a failed turn gives its key and its lock back", async () => {
  behaviour = async (context) => {
    await assemble(context);
    return 500;
  };
  const { status, error } = await post(a, "hi", { key: "k" });
  assert.deepEqual([status, error.code], [502, "provider_failed"]);
  behaviour = assemble;
  assert.equal((await post(b, "hi", { key: "k" })).status, 200);
  assert.deepEqual(redis.texts("web:bob"), ["hi"]);
});

test("a turn that the gateway refused before it began is tried again", async () => {
  behaviour = async (context) => {
    if (turns === 1) return 500;
    return assemble(context);
  };
  assert.equal((await post(a, "hi")).status, 200);
  behaviour = async () => 500;
  const { status, error, headers } = await post(a, "ho");
  assert.deepEqual([status, error.code, headers.get("retry-after")], [503, "turn_not_started", "1"]);
});

test("an overtaken turn is run again on what came between", async () => {
  behaviour = async (context) => {
    await assemble(context);
    if (turns > 1) return;
    const conv = redis.of({ id: "web:bob" });
    conv.seq += 1;
    conv.turns.push({ id: "other", seq: conv.seq, messages: [userMessage("between"), answerMessage("x")] });
  };
  assert.equal((await post(a, "hi", { key: "k" })).status, 200);
  assert.equal(turns, 2);
  assert.deepEqual(redis.texts("web:bob"), ["between", "hi"]);
});

test("the commit stores the answer, so that a crash before the reply costs nothing", async () => {
  behaviour = async (context) => {
    await assemble(context);
    await context.engine.commitTurn({
      advancementKey: context.id,
      sessionKey: context.sessionKey,
      messages: [userMessage("hi"), answerMessage("re hi")],
    });
    assert.equal(redis.claims.get("k").state, "done");
    assert.equal(redis.claims.get("k").body.reply, "re hi");
  };
  assert.equal((await post(a, "hi", { key: "k" })).status, 200);
});

test("a request is noted on disk while its turn runs, without its text, and no longer", async () => {
  const dir = path.join(a.config.spoolDir, "asked");
  // Requests of earlier tests, of whose turns nobody knows.
  const before = await fs.readdir(dir);
  let during;
  behaviour = async (context) => {
    const names = (await fs.readdir(dir)).filter((name) => !before.includes(name));
    during = await Promise.all(names.map((name) => fs.readFile(path.join(dir, name), "utf8")));
    return assemble(context);
  };
  assert.equal((await post(a, "private words", { key: "k" })).status, 200);
  assert.equal(during.length, 1);
  assert.equal(JSON.parse(during[0]).request.key, "k");
  assert.ok(!during[0].includes("private words"));
  behaviour = () => 500;
  assert.notEqual((await post(a, "hi", { key: "k2" })).status, 200);
  assert.deepEqual(await fs.readdir(dir), before);
});

test("a disk that takes no notes stops no turn", async () => {
  const dir = path.join(a.config.spoolDir, "asked");
  await fs.rename(dir, `${dir}.away`);
  try {
    assert.equal((await post(a, "hi", { key: "k" })).status, 200);
    assert.match(a.said.at(-1), /cannot be noted/);
  } finally {
    await fs.rename(`${dir}.away`, dir);
  }
});

test("a busy conversation is a 409", async () => {
  a.config.routeWaitMs = 50;
  redis.of({ id: "web:bob" }).owner = "somebody";
  const { status, error, headers } = await post(a, "hi");
  a.config.routeWaitMs = 2000;
  assert.deepEqual([status, error.code, headers.get("retry-after")], [409, "conversation_busy", "2"]);
  assert.equal(turns, 0);
});

test("a request that is still being answered is a 409 at the deadline", async () => {
  a.config.routeWaitMs = 150;
  await post(b, "hi", { key: "k" });
  redis.claims.set("k", { ...redis.claims.get("k"), state: "running", owner: "B/x" });
  const { status, error } = await post(a, "hi", { key: "k" });
  a.config.routeWaitMs = 2000;
  assert.deepEqual([status, error.code], [409, "request_in_progress"]);
});

test("a limited user is told when to come back, on any replica; a repeated answer costs nothing", async () => {
  for (const runtime of [a, b]) runtime.config.rateLimit = { perKeyPerMinute: 10, burst: 2 };
  assert.equal((await post(a, "one", { key: "k1" })).status, 200);
  assert.equal((await post(b, "two", { key: "k2" })).status, 200);
  for (const runtime of [a, b]) {
    const { status, error, headers } = await post(runtime, "three", { key: "k3" });
    assert.deepEqual([status, error.code, error.type], [429, "rate_limited", "rate_limit_error"]);
    assert.ok(["5", "6"].includes(headers.get("retry-after")), headers.get("retry-after"));
    assert.equal((await post(runtime, "one", { key: "k1" })).reply, "re one");
  }
  assert.equal((await post(a, "hi", { user: "eve" })).status, 200);
  assert.deepEqual(redis.texts("web:bob"), ["one", "two"]);
  // The refused key is free again.
  redis.buckets.clear();
  assert.equal((await post(b, "three", { key: "k3" })).status, 200);
});

test("Redis away: limits go on, counted by each replica", async () => {
  a.config.rateLimit = { perKeyPerMinute: 10, burst: 1 };
  redis.away = true;
  assert.equal((await post(a, "one", { user: "mel" })).status, 200);
  assert.equal((await post(a, "two", { user: "mel" })).status, 429);
});

test("Redis away: answered, and once per key on this replica", async () => {
  redis.away = true;
  assert.equal((await post(a, "hi", { key: "away" })).status, 200);
  assert.equal((await post(a, "hi", { key: "away" })).reply, "re hi");
  assert.equal(turns, 1);
  redis.away = false;
  await a.replayer.all();
  assert.deepEqual(redis.texts("web:bob"), ["hi"]);
});

test("a body that is too large is a 413, a wrong method a 405", async () => {
  const { status, error } = await post(a, "x".repeat(600));
  assert.deepEqual([status, error.code], [413, "body_too_large"]);
  const response = await fetch(`${a.config.gatewayUrl}/api/v1/message`);
  assert.equal(response.status, 405);
});

test("a client that hangs up: nothing is written, nothing stays locked", async () => {
  const gone = new AbortController();
  const finished = new Promise((resolve) => {
    behaviour = async (context) => {
      await assemble(context);
      gone.abort();
      await once(context.req.socket, "close");
      resolve();
      return 499;
    };
  });
  await assert.rejects(post(a, "hi", { key: "k", signal: gone.signal }));
  await finished;
  while (redis.of({ id: "web:bob" }).owner || redis.claims.has("k")) await new Promise(setImmediate);
  assert.deepEqual(redis.texts("web:bob"), []);
});

/**
 * A request whose client hangs up before the gateway has asked for the history; its key and its lock are free again.
 * @param {(context: object) => Promise<*>} run what the gateway does all the same
 * @returns {Promise<() => Promise<void>>} lets the gateway do it; settled when its turn has ended
 */
async function hungUp(key, run) {
  const gone = new AbortController();
  const going = Promise.withResolvers();
  let over;
  behaviour = async (context) => {
    behaviour = assemble;
    ({ over } = context);
    gone.abort();
    await going.promise;
    return run(context);
  };
  await assert.rejects(post(a, "hi", { key, signal: gone.signal }));
  while (redis.of({ id: "web:bob" }).owner || redis.claims.has(key)) await new Promise(setImmediate);
  return () => {
    going.resolve();
    return over;
  };
}

test("a turn that is run after its client was cut off, and after its repetition was answered, is not stored", async () => {
  const go = await hungUp("cut-1", assemble);
  assert.equal((await post(b, "hi", { key: "cut-1" })).replica, "B");
  await go();
  assert.deepEqual(redis.texts("web:bob"), ["hi"]);
  assert.equal(redis.claims.get("cut-1").body.replica, "B");
});

test("a turn that is run after its client was cut off is the answer to the repetition that comes later", async () => {
  const go = await hungUp("cut-2", assemble);
  await go();
  const { replica: name, headers } = await post(b, "hi", { key: "cut-2" });
  assert.deepEqual([name, headers.get("idempotency-replayed")], ["A", "true"]);
  assert.deepEqual(redis.texts("web:bob"), ["hi"]);
});

test("of a turn without a client and its repetition, which overtakes it, one is stored", async () => {
  const go = await hungUp("cut-3", async (context) => {
    await assemble(context);
    // As after a failover: the lock is lost.
    redis.of({ id: "web:bob" }).owner = null;
    assert.equal((await post(b, "other", { key: "other" })).status, 200);
  });
  await go();
  assert.deepEqual(redis.texts("web:bob"), ["other"]);
  assert.equal((await post(b, "hi", { key: "cut-3" })).replica, "B");
  assert.deepEqual(redis.texts("web:bob"), ["other", "hi"]);
});

/** A replica's gateway empties its outbox: a turn that nobody is working on. */
const handOver = (text, advancementKey) =>
  engineOf(a).commitTurn({
    advancementKey,
    sessionKey: KEY,
    messages: [userMessage(text), answerMessage(`re ${text}`)],
  });

test("a turn that was answered, is on nobody's record and is handed over at last, is not stored beside its repetition", async () => {
  behaviour = async (context) => {
    behaviour = assemble;
    await assemble(context);
    return "unhanded";
  };
  assert.equal((await post(a, "hi", { key: "unrecorded" })).error.code, "outcome_unknown");
  assert.equal((await post(b, "hi", { key: "unrecorded" })).replica, "B");
  await handOver("hi", "at last");
  assert.deepEqual(redis.texts("web:bob"), ["hi"]);
});

test("a given-up turn that the gateway hands over at last is not stored beside its repetition", async () => {
  const go = await hungUp("cut-4", async ({ engine, sessionKey, text }) => {
    await assemble({ engine, sessionKey, text });
    await engine.dispose();
    return 499;
  });
  await go();
  assert.equal((await post(b, "hi", { key: "cut-4" })).replica, "B");
  // What the gateway kept of a turn without an end stands in front.
  await handOver("before\n\nhi", "late");
  assert.deepEqual(redis.texts("web:bob"), ["hi"]);
  // The key is used up, and was that of these words only.
  await handOver("hi", "another");
  await handOver("ho", "third");
  assert.deepEqual(redis.texts("web:bob"), ["hi", "hi", "ho"]);
});

test("a request of whose turn nobody knows is not noted for longer than a turn may take", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout"] });
  const dir = path.join(a.config.spoolDir, "asked");
  const before = await fs.readdir(dir);
  const request = parseRequest(JSON.stringify({ channel: "web", user_id: "bob", message: "long ago" }), "k");
  const name = await a.asked.begin(KEY, request);
  a.asked.giveUp(name);
  // A turn that begins so long afterwards is another one.
  assert.equal(await a.asked.take(KEY, { said: Date.now() + 60000, text: "long ago" }), undefined);
  context.mock.timers.tick(64999);
  assert.ok((await fs.readdir(dir)).includes(name));
  context.mock.timers.tick(1);
  context.mock.timers.reset();
  while ((await fs.readdir(dir)).includes(name)) await new Promise(setImmediate);
  assert.deepEqual(await fs.readdir(dir), before);
  assert.equal(await a.asked.take(KEY, { said: Date.now() + 1, text: "long ago" }), undefined);
});

test("only the gateway's own crash replay is blocked", async () => {
  const { before_agent_run: gate } = createHooks(async () => a);
  const replay = { inputProvenance: { kind: "internal_system", sourceTool: "main_session_restart_recovery" } };
  assert.equal((await gate({}, replay)).outcome, "block");
  assert.equal(await gate({}, { inputProvenance: { sourceTool: "other" } }), undefined);
  assert.equal(await gate({}, {}), undefined);
});

test("after a crash a channel's user reads that an answer may be missing, and nothing else", async () => {
  const { message_sending: sending } = createHooks(async () => a);
  const send = (content) => sending({ to: "telegram:1", content }, {});
  // As OpenClaw 2026.9.6 writes them.
  const goesOn =
    "I'm continuing your interrupted request now (the gateway has just restarted).  Don't be concerned with the lack of typing; I am working behind the scenes and I'll send a message when I'm done!";
  assert.equal((await send(goesOn)).cancel, true);
  for (const reason of ["blocked by shared-state", "a reason (blocked by shared-state)"])
    assert.match((await send(`Your message could not be sent: ${reason}`)).content, /please send it again/);
  for (const content of ["I'm continuing your interrupted request now.", "Your message could not be sent: try again", "", undefined])
    assert.equal(await send(content), undefined);
});

test("before_agent_finalize is not registered: it would end streaming", () => {
  assert.equal("before_agent_finalize" in createHooks(), false);
});
