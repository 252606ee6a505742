// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Arrivals } from "./arrivals.js";
import { Asked } from "./asked.js";
import { Breaker } from "./breaker.js";
import { Cron } from "./cron.js";
import { Handover } from "./handover.js";
import { Inbound } from "./inbound.js";
import { redisKeys } from "./keys.js";
import { Limiter } from "./limits.js";
import { Link } from "./link.js";
import { Memory } from "./memory.js";
import { Metrics } from "./metrics.js";
import { OllamaCheck } from "./ollama.js";
import { Peers } from "./peers.js";
import { Queue } from "./queue.js";
import { Recent } from "./recent.js";
import { Replayer } from "./replay.js";
import { Spool } from "./spool.js";
import { Store } from "./store.js";
import { Transcript } from "./transcript.js";

// The gateway loads hooks and context engine as different module instances: only globalThis is shared by them.
const SLOT = Symbol.for("openclaw.ha.shared-state");
const RECENT_CONVERSATIONS = 500;
const RECENT_ANSWERS = 1000;
const FLUSH_WAIT_MS = 2000;

/** Everything that one gateway process shares between its turns. */
export class Runtime {
  /** Turns that POST /api/v1/message has prepared, by session key. @type {Map<string, object>} */
  reservations = new Map();
  /** Engines with an uncommitted turn, by session key. @type {Map<string, {commit: Function}>} */
  active = new Map();
  /** Outcome of each commit, under way or recent, by advancement key. */
  commits = new Recent(RECENT_ANSWERS);
  /** What this replica last saw of a conversation: {turns, seq, epoch}. */
  recent = new Recent(RECENT_CONVERSATIONS);
  /** Answers given by this replica, by idempotency key. */
  answers = new Recent(RECENT_ANSWERS);
  /** Requests that are being answered by this replica, by idempotency key. @type {Map<string, Promise<object>>} */
  inflight = new Map();
  /** Turns that POST /api/v1/message is running here, by conversation id. @type {Map<string, Promise[]>} */
  running = new Map();
  /** Resets under way, by conversation id. @type {Map<string, Promise<void>>} */
  resets = new Map();
  startedAt = Date.now();
  metrics = new Metrics();

  constructor({ config, log, version, connect }) {
    this.config = config;
    this.log = log;
    this.version = version;
    const { metrics } = this;
    this.link = new Link({
      config,
      log,
      metrics,
      connect,
      heartbeatKey: redisKeys(config.keyPrefix).metrics(config.replica),
      onBack: () => {
        void this.replayer.all();
        void this.cron.tell();
      },
      onFull: () => this.memory.full(),
    });
    this.store = new Store({ config, link: this.link, metrics });
    this.memory = new Memory({ store: this.store, log, metrics });
    this.spool = new Spool({
      dir: config.spoolDir,
      maxRecords: config.spoolMaxRecords,
      maxBytes: config.spoolMaxBytes,
      log,
      metrics,
    });
    this.asked = new Asked({
      dir: path.join(config.spoolDir, "asked"),
      ttlMs: config.idempotencyTtlSeconds * 1000,
      turnMs: config.turnTimeoutSeconds * 1000,
      log,
    });
    this.replayer = new Replayer({
      spool: this.spool,
      store: this.store,
      config,
      log,
      metrics,
      isAway: () => this.link.away,
      onWritten: (conv, turn) => this.remember(conv, turn),
    });
    this.peers = new Peers({
      config,
      metrics,
      know: (conv, key) => this.know(conv, key),
      flush: (conv) => this.flush(conv),
      isUnsettled: () => this.link.unsettled(),
    });
    const isAway = () => this.link.away;
    this.breaker = new Breaker({ config, store: this.store, log, metrics, isAway });
    this.limiter = new Limiter({ config, store: this.store, metrics, isAway });
    this.cron = new Cron({ config, store: this.store, log, metrics });
    this.arrivals = new Arrivals({ queue: config.webhooks ? new Queue(config.stateDir) : null, store: this.store, log });
    this.inbound = new Inbound({ config, store: this.store, metrics });
    this.handover = new Handover({ queue: new Queue(config.stateDir), log });
    this.transcript = new Transcript({ log });
    this.ollama = new OllamaCheck(config.ollamaUrl);
    this.ready = this.#start();
  }

  async #start() {
    try {
      await this.spool.open();
      await this.asked.open();
      if (this.spool.size)
        this.log.warn(`${this.spool.size} kept turns from before the start will be written to Redis`);
    } catch (error) {
      this.log.error(
        `The spool ${this.config.spoolDir} cannot be used (${error.message}): ` +
          "turns said while Redis is away would not survive a restart of this gateway",
      );
    }
    this.link.start();
    this.replayer.start();
    this.breaker.start();
    this.memory.start();
    this.ollama.start();
    this.arrivals.start();
    this.metrics.start(
      (fields) => this.store.writeMetrics(fields),
      () => ({
        replica: this.config.replica,
        version: this.version,
        started_at: this.startedAt,
        heartbeat_at: Date.now(),
        spool_records: this.spool.size,
        spool_bytes: this.spool.bytes,
      }),
    );
  }

  stop() {
    this.metrics.stop();
    this.replayer.stop();
    this.breaker.stop();
    this.memory.stop();
    this.cron.stop();
    this.arrivals.stop();
    this.inbound.stop();
    this.handover.stop();
    this.ollama.stop();
    this.link.stop();
  }

  /** Writes what is kept for a conversation before its next turn, within a bound. */
  async flush(conv) {
    await this.resets.get(conv.id);
    if (!this.spool.blocks(conv.id) || this.link.away) return;
    await Promise.race([
      this.replayer.conversation(conv.id).catch(() => {}),
      sleep(FLUSH_WAIT_MS, undefined, { ref: false }),
    ]);
  }

  /**
   * Keeps a record on disk and, unless Redis is away, tries to write it at once.
   * @returns {Promise<boolean>} false when the spool is full
   */
  async keep(record) {
    const name = await this.spool.add(record);
    if (record.op === "turn") {
      this.metrics.add("turns_spooled");
      await this.flush(record.conv);
    }
    return name !== null;
  }

  /**
   * Adds a turn that Redis has got to what this replica remembers of a conversation. When others came between, the
   * conversation is read again: what is remembered must be complete should Redis go away.
   */
  remember(conv, turn) {
    const known = this.recent.get(conv.id);
    if (known?.turns.some(({ id }) => id === turn.id)) return;
    if (known && !turn.late && turn.seq <= known.seq + 1) {
      this.recent.set(conv.id, { ...known, seq: turn.seq, turns: [...known.turns, turn] });
      return;
    }
    const reread = (view) => {
      if (view.seq >= (this.recent.get(conv.id)?.seq ?? 0)) this.recent.set(conv.id, view);
    };
    this.store.read(conv).then(reread, () => {});
  }

  /** What this replica knows of a conversation. @returns {import("./peers.js").Knowledge} */
  know(conv, key) {
    const kept = this.spool.recordsOf(conv.id).filter(({ record }) => record.op !== "confirm").length;
    const pending = kept + (this.running.get(conv.id)?.length ?? 0);
    const idempotencyKey = this.store.idempotencyKey(conv, key);
    return {
      replica: this.config.replica,
      redis: this.link.healthy,
      known: (this.recent.get(conv.id)?.seq ?? 0) + pending,
      pending,
      key: key !== undefined && (this.inflight.has(idempotencyKey) || this.answerTo(conv, key) !== undefined),
    };
  }

  /** The answer that this replica gave to an idempotency key, also in an earlier life if Redis has not got it. */
  answerTo(conv, key) {
    const kept = this.spool.recordsOf(conv.id).find(({ record }) => record.idempotency?.key === key);
    return this.answers.get(this.store.idempotencyKey(conv, key)) ?? kept?.record.idempotency.answer;
  }

  /**
   * Runs a turn here, for peers to see.
   * @template T
   * @param {() => Promise<T>} work
   * @param {{alone: boolean}} options alone: after all that this replica has begun, because no lock orders them
   * @returns {Promise<T>}
   */
  async runTurn(conv, work, { alone }) {
    const earlier = this.running.get(conv.id) ?? [];
    const { promise, resolve } = Promise.withResolvers();
    this.running.set(conv.id, [...earlier, promise]);
    try {
      if (alone) await Promise.all(earlier);
      return await work();
    } finally {
      resolve();
      const left = this.running.get(conv.id).filter((other) => other !== promise);
      if (left.length) this.running.set(conv.id, left);
      else this.running.delete(conv.id);
    }
  }

  /** Forgets a conversation, now or when Redis is back. */
  reset(conv) {
    const work = async () => {
      this.recent.delete(conv.id);
      this.metrics.add("resets");
      if (this.spool.blocks(conv.id)) {
        await this.keep({ op: "reset", conv });
        return;
      }
      try {
        await this.store.reset(conv);
      } catch {
        await this.keep({ op: "reset", conv });
      }
    };
    const previous = this.resets.get(conv.id) ?? Promise.resolve();
    const next = previous
      .then(work)
      .catch((error) => this.log.error(`Reset of ${conv.id} failed: ${error.message}`))
      .finally(() => {
        if (this.resets.get(conv.id) === next) this.resets.delete(conv.id);
      });
    this.resets.set(conv.id, next);
    return next;
  }

  /** @returns {object} the body of GET /api/v1/health */
  health() {
    const redis = this.link.healthy;
    const ollama = this.ollama.healthy;
    const { provider, providers } = this.breaker.health();
    return {
      status: redis && ollama !== false && provider !== false ? "ok" : "degraded",
      uptime_seconds: Math.round(process.uptime()),
      version: this.version,
      replica: this.config.replica,
      redis,
      ollama,
      provider,
      providers,
      spooled: this.spool.size,
      cron: this.cron.health(),
    };
  }
}

/**
 * The process's runtime; created by its first caller.
 * @param {() => Runtime} create
 * @returns {Promise<Runtime>} started
 */
export async function currentRuntime(create) {
  const runtime = (globalThis[SLOT] ??= create());
  await runtime.ready;
  return runtime;
}

/** Replaces the process's runtime. The old one goes on for the turns that still use it, then stops. */
export async function replaceRuntime(create) {
  const old = globalThis[SLOT];
  globalThis[SLOT] = create();
  if (old) setTimeout(() => old.stop(), (old.config.turnTimeoutSeconds + 60) * 1000).unref();
  await globalThis[SLOT].ready;
}

/** Ends the process's runtime, if it is this one. */
export function stopRuntime(config) {
  if (globalThis[SLOT]?.config !== config) return;
  globalThis[SLOT].stop();
  delete globalThis[SLOT];
}
