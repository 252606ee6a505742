// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import fs from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { TurnEngine } from "../../lib/engine.js";
import { Breaker } from "../../lib/breaker.js";
import { Limiter, take } from "../../lib/limits.js";
import { Metrics } from "../../lib/metrics.js";
import { RedisAway } from "../../lib/outage.js";
import { Recent } from "../../lib/recent.js";
import { Replayer } from "../../lib/replay.js";
import { Runtime } from "../../lib/runtime.js";
import { Spool } from "../../lib/spool.js";

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
  store(metrics) {
    const redis = this;
    const up = () => {
      if (redis.away) throw new RedisAway();
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
      async settle(key, _owner, value) {
        up();
        if (value) redis.claims.set(key, value);
        else redis.claims.delete(key);
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

export const temporaryDirectory = () => fs.mkdtemp(path.join(os.tmpdir(), "shared-state-"));

/** A replica without gateway and network. */
export async function replica(redis, name, overrides = {}) {
  const runtime = Object.create(Runtime.prototype);
  const metrics = new Metrics();
  const said = [];
  const log = Object.fromEntries(
    ["info", "warn", "error"].map((level) => [level, (text) => said.push(`${level}: ${text}`)]),
  );
  const store = redis.store(metrics);
  const config = {
    replica: name,
    lockLeaseMs: 60000,
    lockWaitMs: 60,
    routeWaitMs: 60,
    turnTimeoutSeconds: 5,
    trimRatio: 0.8,
    dedupeTtlSeconds: 60,
    idempotencyTtlSeconds: 60,
    ...overrides,
  };
  const spool = new Spool({ dir: await temporaryDirectory(), maxRecords: 100, maxBytes: 1e6, log, metrics });
  await spool.open();
  Object.assign(runtime, {
    config,
    log,
    metrics,
    store,
    spool,
    said,
    reservations: new Map(),
    active: new Map(),
    commits: new Recent(100),
    claims: new Map(),
    recent: new Recent(100),
    answers: new Recent(100),
    inflight: new Map(),
    resets: new Map(),
    link: {
      get away() {
        return redis.away;
      },
    },
  });
  const isAway = () => redis.away;
  runtime.breaker = new Breaker({ config, store, log, metrics, isAway });
  runtime.limiter = new Limiter({ config, store, metrics, isAway });
  runtime.replayer = new Replayer({
    spool,
    store,
    config,
    log,
    metrics,
    isAway: () => redis.away,
    onWritten: (conv) => runtime.recent.delete(conv.id),
  });
  return runtime;
}

let clock = 0;
export const userMessage = (text) => ({ role: "user", content: text, timestamp: clock++ });
export const answerMessage = (text) => ({
  role: "assistant",
  content: [{ type: "text", text }],
  stopReason: "stop",
  timestamp: clock++,
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
