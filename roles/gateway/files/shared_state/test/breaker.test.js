// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import assert from "node:assert/strict";
import http from "node:http";
import { once } from "node:events";
import { test } from "node:test";
import { Breaker } from "../lib/breaker.js";
import { afterFailure, CLOSED, failureReason, isDue, outcomeOf, route } from "../lib/circuit.js";
import { createHooks } from "../lib/hooks.js";
import { Metrics } from "../lib/metrics.js";
import { RedisAway } from "../lib/outage.js";
import { tryProvider } from "../lib/trial.js";

const LIMITS = { failures: 3, openMs: 1000 };

test("a circuit opens after so many failures in a row, and a failed trial keeps it open", () => {
  let circuit = afterFailure(afterFailure(CLOSED, 10, LIMITS), 20, LIMITS);
  assert.deepEqual(circuit, { open: false, failures: 2, until: 0, since: 0 });
  assert.equal(isDue(circuit, 1e9), false);
  circuit = afterFailure(circuit, 30, LIMITS);
  assert.deepEqual(circuit, { open: true, failures: 3, until: 1030, since: 30 });
  assert.equal(isDue(circuit, 1029), false);
  assert.equal(isDue(circuit, 1030), true);
  assert.deepEqual(afterFailure(circuit, 1500, LIMITS), { open: true, failures: 4, until: 2500, since: 30 });
});

test("a call goes to the first closed provider from its own place on; when all are open, to its own", () => {
  const chain = ["a", "b", "c"].map((id) => ({ id }));
  const to = (index, ...open) => route(chain, index, (id) => open.includes(id));
  assert.equal(to(0), 0);
  assert.equal(to(0, "a"), 1);
  assert.equal(to(0, "a", "b"), 2);
  assert.equal(to(1, "a"), 1);
  assert.equal(to(1, "b"), 2);
  assert.equal(to(0, "a", "b", "c"), 0);
  const after = (asked, index, ...open) => route(chain, index, (id) => open.includes(id), (id) => asked.includes(id));
  assert.equal(after(["a"], 1), 1);
  assert.equal(after(["b"], 1, "a"), 2);
  assert.equal(after(["b", "c"], 1, "a"), 0, "nobody else is left");
  assert.equal(after(["a", "b", "c"], 2), 2);
});

test("what is the provider's fault, and what is not", () => {
  for (const [message, kind, reason] of [
    ["500 The server had an error", undefined, "500"],
    ["503 overloaded", undefined, "503"],
    ["429 Rate limit reached.; Retry-After: 1 seconds", undefined, "429"],
    ["401 Incorrect API key provided.", undefined, "401"],
    ["Ollama API error 404: model not found", undefined, "404"],
    ["request timed out", undefined, "timeout"],
    ["request timed out", "timeout", "timeout"],
    ["", "connection_reset", "connection_reset"],
    ["Connection error.", undefined, "connection"],
    ["400 This model's maximum context length is exceeded.", undefined, null],
    ["413 too large", undefined, null],
    ["This operation was aborted", undefined, null],
    ["", "aborted", null],
    ["something else", undefined, null],
  ]) {
    assert.equal(failureReason(message, kind), reason, `${message} ${kind}`);
  }
});

test("how an attempt ended, as the gateway says it", () => {
  const assistant = (more) => ({ success: true, messages: [{ role: "user" }, { role: "assistant", ...more }] });
  assert.deepEqual(outcomeOf(assistant({ stopReason: "stop" })), { answered: true, reason: null });
  assert.deepEqual(outcomeOf(assistant({ stopReason: "error", errorMessage: "500 no" })), {
    answered: false,
    reason: "500",
  });
  // A provider that hangs leaves no message at all.
  const hung = { success: false, messages: [{ role: "user" }] };
  assert.deepEqual(outcomeOf(hung, "timeout"), { answered: false, reason: "timeout" });
  // So does a client that hung up.
  assert.deepEqual(outcomeOf(hung, "aborted"), { answered: false, reason: null });
  assert.deepEqual(outcomeOf(hung), { answered: false, reason: null });
  assert.deepEqual(outcomeOf({ success: true, messages: [{ role: "toolResult" }] }), { answered: false, reason: null });
});

const CHAIN = ["cloud", "other", "ollama"].map((id) => ({
  id,
  model: `${id}-m`,
  api: "openai-completions",
  endpoint: "http://127.0.0.1:9",
  timeoutSeconds: 1,
}));
const failing = (reason, runId = "r") => ({
  runId,
  success: true,
  messages: [{ role: "assistant", stopReason: "error", errorMessage: reason }],
});
const fine = { runId: "r", success: true, messages: [{ role: "assistant", stopReason: "stop" }] };

/** What the scripts do, in memory, for several replicas. */
class SharedCircuits {
  circuits = new Map();
  leases = new Set();
  away = false;
  reads = 0;
  get(id) {
    if (this.away) throw new RedisAway();
    return this.circuits.get(id) ?? CLOSED;
  }
  async circuitsOf(ids) {
    this.reads += 1;
    return ids.map((id) => this.get(id));
  }
  async circuitFailed(id, { trial, failures }, openMs) {
    const limits = { failures, openMs };
    const before = this.get(id);
    if (trial) this.leases.delete(id);
    const after = before.open && !trial ? before : afterFailure(before, Date.now(), limits);
    this.circuits.set(id, after);
    return { ...after, opened: after.open && !before.open };
  }
  async circuitTrial(id) {
    const circuit = this.get(id);
    const mine = isDue(circuit, Date.now()) && !this.leases.has(id);
    if (mine) this.leases.add(id);
    return { ...circuit, mine };
  }
  async circuitClosed(id) {
    const before = this.get(id);
    this.circuits.delete(id);
    this.leases.delete(id);
    return before.open ? Date.now() - before.since : null;
  }
}

function breakerOf(redis, { trial = async () => "500", openSeconds = 0, failures = 2, providers = CHAIN } = {}) {
  const said = [];
  const log = Object.fromEntries(["info", "warn", "error"].map((level) => [level, (text) => said.push(text)]));
  const metrics = new Metrics();
  const config = { providers, breakerFailures: failures, breakerOpenSeconds: openSeconds, replica: "A" };
  const store = {
    circuits: (ids) => redis.circuitsOf(ids),
    circuitFailed: (id, failure) => redis.circuitFailed(id, failure, openSeconds * 1000),
    circuitTrial: (id) => redis.circuitTrial(id),
    circuitClosed: (id) => redis.circuitClosed(id),
  };
  const breaker = new Breaker({ config, store, log, metrics, isAway: () => redis.away, trial });
  return Object.assign(breaker, { said, metrics });
}

const CLOUD_CALL = ["cloud", "cloud-m"]; // without a run: no turn of its own
const OVERRIDE = { providerOverride: "other", modelOverride: "other-m" };

test("what one replica learns moves the turns of all, and is said once", async () => {
  const redis = new SharedCircuits();
  const [a, b] = [breakerOf(redis), breakerOf(redis)];
  await a.attemptEnded(failing("500 no"), "cloud");
  assert.equal(await b.select(...CLOUD_CALL), undefined);
  await b.attemptEnded(failing("503 no"), "cloud");
  for (const breaker of [a, b]) assert.deepEqual(await breaker.select(...CLOUD_CALL), OVERRIDE);
  await a.attemptEnded(failing("500 no"), "cloud");
  assert.deepEqual([...a.said, ...b.said], [
    "event=provider_switched from=cloud to=other reason=503 failures=2 next_trial_s=0",
  ]);
  assert.deepEqual(
    [a, b].map(({ metrics }) => [metrics.get("provider_switches"), metrics.get("provider_redirected")]),
    [
      [0, 1],
      [1, 1],
    ],
  );
});

test("an answer between failures starts the count again", async () => {
  const breaker = breakerOf(new SharedCircuits());
  for (const event of [failing("500 no"), fine, failing("500 no")]) await breaker.attemptEnded(event, "cloud");
  assert.equal(await breaker.select(...CLOUD_CALL), undefined);
});

test("a turn asks no provider twice while another is left", async () => {
  const breaker = breakerOf(new SharedCircuits());
  for (let number = 0; number < 2; number += 1) await breaker.attemptEnded(failing("500 no"), "cloud");
  const goes = async (id, run) => (await breaker.select(id, `${id}-m`, run))?.providerOverride ?? id;
  // What the gateway asks for, one after the other, when each of them fails.
  assert.deepEqual([await goes("cloud", "t"), await goes("other", "t"), await goes("ollama", "t")], [
    "other",
    "ollama",
    "cloud",
  ]);
  assert.equal(await goes("cloud", "another turn"), "other");
});

test("a refused key opens at once, with Redis and without", async () => {
  for (const away of [false, true]) {
    const redis = Object.assign(new SharedCircuits(), { away });
    const breaker = breakerOf(redis);
    await breaker.attemptEnded(failing("401 Incorrect API key provided."), "cloud");
    assert.deepEqual(await breaker.select(...CLOUD_CALL), OVERRIDE);
    assert.match(breaker.said[0], /reason=401/);
  }
});

test("other models, the last provider and the client's own faults open nothing", async () => {
  const breaker = breakerOf(new SharedCircuits());
  for (let number = 0; number < 5; number += 1) {
    await breaker.attemptEnded(failing("500 no"), "ollama");
    await breaker.attemptEnded(failing("500 no"), "stranger");
    await breaker.attemptEnded(failing("400 context"), "cloud");
    breaker.modelCallEnded({ runId: "r", outcome: "error", failureKind: "aborted" });
    await breaker.attemptEnded({ runId: "r", success: false, messages: [] }, "cloud");
  }
  assert.equal(await breaker.select(...CLOUD_CALL), undefined);
  assert.equal(await breaker.select("ollama", "ollama-m"), undefined);
  assert.equal(await breaker.select("cloud", "a model that a user has chosen"), undefined);
  assert.deepEqual(breaker.said, []);
});

test("a hang that is reported twice counts once", async () => {
  const breaker = breakerOf(new SharedCircuits());
  breaker.modelCallEnded({ runId: "r", outcome: "error", failureKind: "timeout" });
  await breaker.attemptEnded(failing("request timed out"), "cloud");
  assert.equal(await breaker.select(...CLOUD_CALL), undefined);
  breaker.modelCallEnded({ runId: "r", outcome: "error", failureKind: "timeout" });
  await breaker.attemptEnded({ runId: "r", success: false, messages: [] }, "cloud");
  assert.deepEqual(await breaker.select(...CLOUD_CALL), OVERRIDE);
});

test("one replica at a time tries, and turns go back as soon as the provider answers", async () => {
  const redis = new SharedCircuits();
  let finish;
  let trials = 0;
  const trial = () => {
    trials += 1;
    return new Promise((resolve) => {
      finish = resolve;
    });
  };
  const [a, b] = [breakerOf(redis, { trial }), breakerOf(redis, { trial })];
  for (const breaker of [a, b]) await breaker.attemptEnded(failing("500 no"), "cloud");
  await a.select(...CLOUD_CALL);
  const running = a.tick();
  await b.tick();
  await a.tick();
  assert.equal(trials, 1);
  assert.deepEqual(await b.select(...CLOUD_CALL), OVERRIDE);
  finish("timeout");
  await running;
  assert.deepEqual(await a.select(...CLOUD_CALL), OVERRIDE);
  const again = b.tick();
  await Promise.resolve();
  while (trials < 2) await new Promise(setImmediate);
  finish(null);
  await again;
  assert.equal(await a.select(...CLOUD_CALL), undefined);
  assert.match(b.said.at(-1), /^event=provider_back to=cloud from=other after_s=\d+$/);
  assert.equal(a.said.concat(b.said).filter((line) => line.includes("provider_back")).length, 1);
});

test("the health route is told at once which circuits are closed, also those that another replica has opened", async () => {
  const redis = new SharedCircuits();
  const [a, b] = [breakerOf(redis), breakerOf(redis)];
  assert.deepEqual(a.health(), { provider: true, providers: { cloud: true, other: true } });
  for (let number = 0; number < 2; number += 1) await a.attemptEnded(failing("500 no"), "cloud");
  assert.deepEqual(a.health(), { provider: false, providers: { cloud: false, other: true } });
  b.health(); // asks
  await new Promise(setImmediate);
  assert.deepEqual(b.health(), { provider: false, providers: { cloud: false, other: true } });
  redis.away = true;
  assert.equal(b.health().provider, false, "what is known stays known");
});

test("the health route does not name providers that have no circuit", () => {
  for (const options of [{ failures: 0 }, { providers: CHAIN.slice(0, 1) }]) {
    const breaker = breakerOf(new SharedCircuits(), options);
    assert.deepEqual(breaker.health(), { provider: null, providers: {} });
  }
});

test("a trial waits for its time", async () => {
  let trials = 0;
  const breaker = breakerOf(new SharedCircuits(), { openSeconds: 60, trial: async () => (trials += 1) && null });
  await breaker.tick();
  for (let number = 0; number < 2; number += 1) await breaker.attemptEnded(failing("500 no"), "cloud");
  await breaker.tick();
  assert.equal(trials, 0);
});

test("a trial that goes wrong is said and may be repeated", async () => {
  const redis = new SharedCircuits();
  const breaker = breakerOf(redis, { trial: async () => assert.fail("broken") });
  for (let number = 0; number < 2; number += 1) await breaker.attemptEnded(failing("500 no"), "cloud");
  await breaker.tick();
  redis.leases.clear();
  await breaker.tick();
  assert.equal(breaker.said.filter((line) => /trial of provider cloud went wrong/.test(line)).length, 2);
});

test("while Redis is away each replica decides for itself", async () => {
  const redis = new SharedCircuits();
  redis.away = true;
  const [a, b] = [breakerOf(redis, { trial: async () => null }), breakerOf(redis)];
  for (let number = 0; number < 2; number += 1) await a.attemptEnded(failing("500 no"), "cloud");
  assert.deepEqual(await a.select(...CLOUD_CALL), OVERRIDE);
  assert.equal(await b.select(...CLOUD_CALL), undefined);
  await a.tick();
  assert.equal(await a.select(...CLOUD_CALL), undefined);
  assert.deepEqual(a.said.map((line) => line.split(" ")[0]), ["event=provider_switched", "event=provider_back"]);
});

test("a Redis that fails in this very moment holds nothing up", async () => {
  const redis = new SharedCircuits();
  const breaker = breakerOf(redis);
  redis.get = () => {
    throw new RedisAway();
  };
  for (let number = 0; number < 2; number += 1) await breaker.attemptEnded(failing("500 no"), "cloud");
  assert.deepEqual(await breaker.select(...CLOUD_CALL), OVERRIDE);
});

test("off: nothing is asked", async () => {
  const redis = new SharedCircuits();
  for (const breaker of [breakerOf(redis, { failures: 0 }), breakerOf(redis, { providers: CHAIN.slice(0, 1) })]) {
    for (let number = 0; number < 5; number += 1) await breaker.attemptEnded(failing("500 no"), "cloud");
    assert.equal(await breaker.select(...CLOUD_CALL), undefined);
  }
  assert.equal(redis.reads, 0);
});

test("the gateway's hooks lead to the breaker; a provider's error settles no webhook message", async () => {
  const breaker = breakerOf(new SharedCircuits());
  const settled = [];
  const inbound = { committed: async (sessionKey) => settled.push(sessionKey) };
  const transcript = { closeInterrupted: async () => {} };
  const runtime = { breaker, metrics: new Metrics(), active: new Map(), inbound, transcript };
  const hooks = createHooks(async () => runtime);
  const ctx = { modelProviderId: "cloud", modelId: "cloud-m", sessionKey: "s" };
  await hooks.agent_end(failing("500 no"), ctx);
  await hooks.model_call_ended({ runId: "x", outcome: "error", failureKind: "timeout" });
  await hooks.agent_end({ runId: "x", success: false, messages: [] }, ctx);
  assert.deepEqual(await hooks.before_model_resolve({}, ctx), OVERRIDE);
  assert.deepEqual(settled, []);
  await hooks.agent_end(fine, { ...ctx, modelProviderId: "other" });
  assert.deepEqual(settled, ["s"]);
  assert.deepEqual([runtime.metrics.get("runs_failed"), runtime.metrics.get("runs_succeeded")], [2, 1]);
});

test("a trial asks the model itself", async () => {
  const seen = [];
  let answer = (res) => res.end("{}");
  const server = http.createServer(async (req, res) => {
    let body = "";
    for await (const chunk of req) body += chunk;
    seen.push({ url: req.url, key: req.headers.authorization, ...JSON.parse(body) });
    answer(res);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const endpoint = `http://127.0.0.1:${server.address().port}`;
  const openai = { api: "openai-completions", endpoint: `${endpoint}/v1`, model: "m", key: "k", timeoutMs: 5000 };
  const ask = (status) => {
    answer = (res) => {
      res.statusCode = status;
      res.end("{}");
    };
    return tryProvider(openai);
  };
  try {
    assert.equal(await tryProvider(openai), null);
    assert.equal(await tryProvider({ api: "ollama", endpoint, model: "o", timeoutMs: 5000 }), null);
    const messages = [{ role: "user", content: "ping" }];
    assert.deepEqual(seen, [
      { url: "/v1/chat/completions", key: "Bearer k", model: "m", messages, stream: false, max_tokens: 1 },
      { url: "/api/chat", key: undefined, model: "o", messages, stream: false, options: { num_predict: 1 } },
    ]);
    for (const status of [401, 404, 429, 500, 503]) assert.equal(await ask(status), String(status));
    // It takes no such question, but it is there.
    assert.equal(await ask(400), null);
    // A head without a body is no answer.
    answer = (res) => res.write(" ");
    assert.equal(await tryProvider({ ...openai, timeoutMs: 100 }), "timeout");
  } finally {
    server.closeAllConnections();
    server.close();
  }
  await once(server, "close");
  assert.equal(await tryProvider(openai), "connection");
});
