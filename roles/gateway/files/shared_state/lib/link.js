// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { setTimeout as sleep } from "node:timers/promises";
import { causeOf, isFull, isOutage, Outage, RedisAway } from "./outage.js";

const RETRY_MS = 100;
const PROBE_MS = 1000;
const PROBE_DOWN_MS = 500;
const STUCK_PROBES = 3;
// All replicas have noticed the end of an outage by then.
const GRACE_MS = 15000;

/**
 * The connection to the Redis primary and its outages: says when Redis went away and when it is back, once each, and
 * decides how long an operation may wait. Commits have a connection of their own, because WAIT holds up what is behind
 * it on the same one.
 */
export class Link {
  #config;
  #log;
  #metrics;
  #outage;
  #connect;
  #lastError;
  #onBack;
  #onFull;
  #heartbeatKey;
  #clients = {};
  #stopped = false;
  #stuck = 0;
  #full = false;

  /**
   * @param {object} options
   * @param {object} options.config settings
   * @param {{info: Function, warn: Function, error: Function}} options.log
   * @param {import("./metrics.js").Metrics} options.metrics
   * @param {string} options.heartbeatKey hash that the probe writes to
   * @param {() => void} options.onBack called when an outage has ended
   * @param {() => void} options.onFull called when Redis refuses a write for want of memory
   * @param {() => import("ioredis").Redis} options.connect opens a connection to the primary
   */
  constructor({ config, log, metrics, heartbeatKey, onBack, onFull, connect }) {
    this.#config = config;
    this.#log = log;
    this.#metrics = metrics;
    this.#heartbeatKey = heartbeatKey;
    this.#onBack = onBack;
    this.#onFull = onFull;
    this.#outage = new Outage(config.outageWaitMs);
    this.#connect = connect;
    this.#reconnect();
  }

  /** True unless an outage is known or suspected. */
  get healthy() {
    return !this.#outage.suspected && this.#clients.turns.status === "ready";
  }
  get away() {
    return this.#outage.away;
  }

  /**
   * May another replica still take Redis for away? Waits for the end of a failover first.
   * @throws {RedisAway}
   */
  async unsettled() {
    if (this.#outage.suspected) await this.run(() => this.#probe(), { writes: true });
    return this.#outage.calm(Date.now()) < GRACE_MS;
  }

  /** Starts the background probe, which notices an outage before a turn does, and its end without one. */
  start() {
    void this.#probeLoop();
  }

  stop() {
    this.#stopped = true;
    for (const client of Object.values(this.#clients)) client.disconnect();
  }

  /**
   * Runs one idempotent operation, waiting out a failover.
   * @template T
   * @param {(client: import("ioredis").Redis) => Promise<T>} operation
   * @param {{client?: "turns"|"commits", once?: boolean, writes?: boolean}} [options] once: a single try, for background
   *   work; writes: needs memory, so its success shows that Redis is no longer full
   * @returns {Promise<T>}
   * @throws {RedisAway} when Redis is away; any other error is about this operation only
   */
  async run(operation, { client = "turns", once = false, writes = false } = {}) {
    const deadline = Date.now() + this.#config.outageWaitMs;
    for (;;) {
      if ((this.#outage.away && !once) || this.#stopped) throw new RedisAway(this.#lastError);
      try {
        const result = await operation(this.#clients[client]);
        this.#succeeded(writes);
        return result;
      } catch (failure) {
        const error = causeOf(failure);
        if (!isOutage(error)) throw failure;
        this.#failed(error);
        if (isFull(error)) {
          this.#full = true;
          this.#onFull();
        }
        if (once || Date.now() >= deadline) throw new RedisAway(error);
        await sleep(RETRY_MS);
      }
    }
  }

  /**
   * Runs one operation that tells nothing about whether Redis takes writes: it neither begins an outage nor ends one.
   * @template T
   * @param {(client: import("ioredis").Redis) => Promise<T>} operation
   * @returns {Promise<T>}
   */
  async aside(operation) {
    return operation(this.#clients.turns);
  }

  #failed(error) {
    // "Connection is closed" hides the reason that the connection itself reported.
    if (!this.#lastError || !/Connection is closed|Stream isn't writeable/.test(error.message)) this.#lastError = error;
    if (!this.#outage.failed(Date.now())) return;
    this.#metrics.add("redis_outages");
    this.#log.warn(
      `Redis is away (${this.#lastError.message}). Answers go on from local history; ` +
        "turns are kept on this host and written to Redis when it is back.",
    );
  }

  #succeeded(writes) {
    // A full Redis still reads, deletes and prolongs.
    if (this.#full && !writes) return;
    this.#full = false;
    const now = Date.now();
    const lasted = this.#outage.lasted(now);
    if (!this.#outage.succeeded(now)) return;
    this.#log.warn(`Redis is back after ${Math.round(lasted / 1000)} s. Kept turns are being written.`);
    this.#onBack();
  }

  async #probeLoop() {
    while (!this.#stopped) {
      await sleep(this.#outage.suspected ? PROBE_DOWN_MS : PROBE_MS, undefined, { ref: false });
      if (this.#stopped) return;
      try {
        await this.run(() => this.#probe(), { once: true, writes: true });
        this.#stuck = 0;
      } catch {
        this.#stuck += 1;
        if (this.#stuck % STUCK_PROBES === 0 && !this.#stopped) this.#reconnect();
      }
    }
  }

  /** Both connections; with a write, because a primary without enough replicas still answers PING. */
  async #probe() {
    const { turns, commits } = this.#clients;
    await commits.ping();
    const answers = await turns
      .multi()
      .hset(this.#heartbeatKey, "heartbeat_at", Date.now())
      .expire(this.#heartbeatKey, this.#config.metricsTtlSeconds)
      .exec();
    for (const [error] of answers) if (error) throw error;
  }

  /** New connections in place of old ones: a vanished host leaves one that looks open for minutes. */
  #reconnect() {
    for (const name of ["turns", "commits"]) {
      this.#clients[name]?.disconnect();
      this.#clients[name] = this.#connect();
      this.#clients[name].on("error", (error) => {
        this.#lastError = error;
      });
    }
  }
}
