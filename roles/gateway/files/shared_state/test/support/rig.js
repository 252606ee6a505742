// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import fs from "node:fs/promises";
import http from "node:http";
import os from "node:os";
import path from "node:path";
import { TurnEngine } from "../../lib/engine.js";
import { handleMessage } from "../../lib/message.js";
import { Asked } from "../../lib/asked.js";
import { Breaker } from "../../lib/breaker.js";
import { Cron } from "../../lib/cron.js";
import { Limiter, take } from "../../lib/limits.js";
import { Metrics } from "../../lib/metrics.js";
import { RedisAway } from "../../lib/outage.js";
import { Handover } from "../../lib/handover.js";
import { Inbound } from "../../lib/inbound.js";
import { PEER_PATH, Peers } from "../../lib/peers.js";
import { Queue } from "../../lib/queue.js";
import { Recent } from "../../lib/recent.js";
import { Replayer } from "../../lib/replay.js";
import { Runtime } from "../../lib/runtime.js";
import { Spool } from "../../lib/spool.js";
import { Transcript } from "../../lib/transcript.js";

const directories = mkdtempSync(path.join(os.tmpdir(), "shared-state-"));
process.once("exit", () => rmSync(directories, { recursive: true, force: true }));

/** The Redis that several replicas share: what the scripts do, in memory. `away` = it answers nobody. */
export class FakeRedis {
  away = false;
  confirmed = true;
  conversations = new Map();
  claims = new Map();
  buckets = new Map();

  of(conv) {
    if (!this.conversations.has(conv.id)) {
      this.conversations.set(conv.id, { turns: [], seq: 0, epoch: 0, owner: null, seen: new Map() });
    }
    return this.conversations.get(conv.id);
  }

  /** The Store of one replica. */
  store(metrics, isAway = () => this.away) {
    const redis = this;
    const up = () => {
      if (isAway()) throw new RedisAway();
    };
    return {
      async begin(conv, owner, known) {
        up();
        const c = redis.of(conv);
        if (c.owner && c.owner !== owner) return { busyMs: 1 };
        c.owner = owner;
        if (known && known.epoch === c.epoch && known.seq === c.seq) return known;
        return { epoch: c.epoch, seq: c.seq, turns: [...c.turns] };
      },
      async read(conv) {
        up();
        const c = redis.of(conv);
        return { epoch: c.epoch, seq: c.seq, turns: [...c.turns] };
      },
      async renew() {
        up();
        return true;
      },
      async release(conv, owner) {
        up();
        const c = redis.of(conv);
        if (c.owner === owner) c.owner = null;
      },
      async commit({ conv, owner, base, epoch, turn, idempotency }, { mode }) {
        up();
        const c = redis.of(conv);
        const done = (status, seq = 0, late = false) => {
          if (status !== "fenced" && c.owner === owner) c.owner = null;
          return { status, seq, late, confirmed: redis.confirmed };
        };
        if (c.seen.has(turn.id)) return done("duplicate", c.seen.get(turn.id));
        const late = base !== "" && base !== c.seq;
        if (idempotency && redis.claims.get(idempotency.key)?.state === "done") return done("answered");
        if (mode === "next" && (late || (c.owner && c.owner !== owner))) return done("fenced");
        if (mode === "kept" && c.owner !== owner) return done("fenced");
        if (mode === "kept" && epoch !== "" && epoch !== c.epoch) return done("discarded");
        c.seq += 1;
        c.seen.set(turn.id, c.seq);
        c.turns.push({ seq: c.seq, ...(late && { late: true }), ...turn });
        if (idempotency) redis.claims.set(idempotency.key, idempotency.answer);
        if (late) metrics.add("turns_late");
        return done("committed", c.seq, late);
      },
      async reset(conv) {
        up();
        const c = redis.of(conv);
        c.turns = [];
        c.epoch += 1;
      },
      async compact(conv, keep) {
        up();
        const c = redis.of(conv);
        c.turns = keep ? c.turns.slice(-keep) : [];
      },
      async claim(key, owner, _leaseMs, fingerprint) {
        up();
        const present = redis.claims.get(key);
        if (present && (present.state !== "running" || present.owner !== owner)) return present;
        redis.claims.set(key, { state: "running", owner, fingerprint });
        return null;
      },
      async settle(key, owner, value) {
        up();
        const present = redis.claims.get(key);
        if (present?.owner && present.owner !== owner) return false;
        if (present?.state === "done" && value?.state !== "done") return false;
        if (value) redis.claims.set(key, value);
        else redis.claims.delete(key);
        return true;
      },
      async takeTokens(limits) {
        up();
        const { waitMs, buckets } = take(
          limits.map(({ name }) => redis.buckets.get(name)),
          limits,
          Date.now(),
        );
        limits.forEach(({ name }, index) => redis.buckets.set(name, buckets[index]));
        return waitMs;
      },
      dedupeKey: (parts) => parts.join("/"),
      idempotencyKey: (_conv, key) => key,
    };
  }

  texts(id) {
    return (this.conversations.get(id)?.turns ?? []).map(({ messages }) => messages[0].content);
  }
}

/** What a gateway's own functions for its transcripts do, in memory. */
export class LocalTranscripts {
  reads = 0;
  #sessions = new Map();

  entries(sessionId) {
    if (!this.#sessions.has(sessionId)) this.#sessions.set(sessionId, []);
    return this.#sessions.get(sessionId);
  }

  async readVisibleSessionTranscriptMessageEntries({ sessionId }) {
    this.reads += 1;
    return [...this.entries(sessionId)];
  }

  async appendSessionTranscriptMessageByIdentity({ agentId, sessionKey, sessionId, message }) {
    const createdAt = new Date(message.timestamp).toISOString();
    this.entries(sessionId).push({ agentId, sessionKey, role: message.role, message, createdAt });
  }
}

/** A new empty directory, gone when the process ends. */
export const temporaryDirectory = () => fs.mkdtemp(path.join(directories, "_"));

/** A replica without gateway and network. */
export async function replica(redis, name, overrides = {}) {
  const runtime = Object.create(Runtime.prototype);
  const metrics = new Metrics();
  const said = [];
  const log = Object.fromEntries(
    ["info", "warn", "error"].map((level) => [level, (text) => said.push(`${level}: ${text}`)]),
  );
  const store = redis.store(metrics, () => runtime.redisAway());
  const config = {
    replica: name,
    lockLeaseMs: 60000,
    lockWaitMs: 60,
    routeWaitMs: 60,
    turnTimeoutSeconds: 5,
    trimRatio: 0.8,
    dedupeTtlSeconds: 60,
    idempotencyTtlSeconds: 60,
    peers: [],
    jobs: [],
    peerTimeoutMs: 300,
    gatewayToken: "tok",
    spoolDir: await temporaryDirectory(),
    ...overrides,
  };
  const spool = new Spool({ dir: config.spoolDir, maxRecords: 100, maxBytes: 1e6, log, metrics });
  await spool.open();
  const asked = new Asked({ dir: path.join(config.spoolDir, "asked"), ttlMs: 60000, turnMs: 5000, log });
  await asked.open();
  Object.assign(runtime, {
    config,
    log,
    metrics,
    store,
    spool,
    asked,
    said,
    reservations: new Map(),
    active: new Map(),
    commits: new Recent(100),
    recent: new Recent(100),
    answers: new Recent(100),
    inflight: new Map(),
    resets: new Map(),
    running: new Map(),
    // How this replica sees Redis, which others may see differently.
    redisAway: () => redis.away,
    graceful: false,
    link: {
      get away() {
        return runtime.redisAway();
      },
      get healthy() {
        return !runtime.redisAway();
      },
    },
  });
  runtime.peers = new Peers({
    config,
    metrics,
    know: (conv, key) => runtime.know(conv, key),
    flush: (conv) => runtime.flush(conv),
    isUnsettled: async () => {
      if (runtime.redisAway()) throw new RedisAway();
      return runtime.graceful;
    },
  });
  const isAway = () => redis.away;
  runtime.breaker = new Breaker({ config, store, log, metrics, isAway });
  runtime.cron = new Cron({ config, store, log, metrics, scheduler: { getCron: null, ids: null, held: new Map() } });
  runtime.inbound = new Inbound({ config, store, metrics });
  runtime.handover = new Handover({ queue: new Queue(), log });
  runtime.local = new LocalTranscripts();
  runtime.transcript = new Transcript({ log, sdk: async () => runtime.local });
  runtime.limiter = new Limiter({ config, store, metrics, isAway });
  runtime.replayer = new Replayer({
    spool,
    store,
    config,
    log,
    metrics,
    isAway: () => runtime.redisAway(),
    onWritten: (conv, turn) => runtime.remember(conv, turn),
  });
  return runtime;
}

// Of now, and no two alike.
let last = 0;
const clock = () => (last = Math.max(last + 1, Date.now()));
export const userMessage = (text) => ({ role: "user", content: text, timestamp: clock() });
export const answerMessage = (text) => ({
  role: "assistant",
  content: [{ type: "text", text }],
  stopReason: "stop",
  timestamp: clock(),
});
export const engineOf = (runtime) => new TurnEngine(async () => runtime);
export const KEY = "agent:main:api:web:bob";

/** One turn as the gateway runs it. @returns {Promise<string[]>} the user texts that the model was shown */
export async function turn(runtime, text, { local = [], between = async () => {} } = {}) {
  const engine = engineOf(runtime);
  const { messages } = await engine.assemble({ sessionKey: KEY, sessionId: "s", messages: local, prompt: text });
  await between(engine);
  await engine.commitTurn({
    advancementKey: `id-${text}`,
    sessionKey: KEY,
    messages: [userMessage(text), answerMessage("ok")],
  });
  await engine.dispose();
  return messages.filter(({ role }) => role === "user").map(({ content }) => content);
}

/** What a gateway does first in a turn. */
export const assemble = async ({ engine, sessionKey, text }) => {
  const { messages } = await engine.assemble({ sessionKey, sessionId: "s", messages: [], prompt: text });
  return messages.filter(({ role }) => role === "user").map(({ content }) => content);
};

/**
 * A gateway that has the plugin's routes and runs a turn as the real one does.
 * @param {(context: object) => Promise<number|string|*>} run until the answer is there; a number is an error's status,
 *   "unhanded" an answer that is not handed over for storing; context.over: the turn has ended
 * @returns {Promise<http.Server>} listening; its url is the replica's gatewayUrl
 */
export async function gateway(runtime, run) {
  const server = http.createServer(async (req, res) => {
    if (req.url === "/api/v1/message") {
      await handleMessage(runtime, req, res);
      return;
    }
    if (req.url === PEER_PATH) {
      await runtime.peers.handle(req, res);
      return;
    }
    let body = "";
    for await (const chunk of req) body += chunk;
    const text = JSON.parse(body).messages[0].content;
    const sessionKey = req.headers["x-openclaw-session-key"];
    const id = randomUUID();
    const engine = engineOf(runtime);
    const over = Promise.withResolvers();
    const result = await run({ runtime, engine, sessionKey, text, id, req, over: over.promise });
    const status = Number.isInteger(result) ? result : 200;
    if (status === 200 && result !== "unhanded") {
      const messages = [userMessage(text), answerMessage(`re ${text}`)];
      await engine.commitTurn({ advancementKey: id, sessionKey, messages });
    }
    await engine.dispose();
    over.resolve();
    res.writeHead(status, { "content-type": "application/json" });
    res.end(
      JSON.stringify(
        status === 200
          ? { choices: [{ message: { content: `re ${text}` } }] }
          : { error: { message: "internal error" } },
      ),
    );
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  runtime.config.gatewayUrl = `http://127.0.0.1:${server.address().port}`;
  return server;
}

/** One client's request to POST /api/v1/message. */
export async function post(runtime, message, { key, user = "bob", body, signal, headers } = {}) {
  const response = await fetch(`${runtime.config.gatewayUrl}/api/v1/message`, {
    method: "POST",
    signal,
    headers: { "content-type": "application/json", ...(key && { "idempotency-key": key }), ...headers },
    body: body ?? JSON.stringify({ channel: "web", user_id: user, message }),
  });
  return { status: response.status, headers: response.headers, ...(await response.json()) };
}
