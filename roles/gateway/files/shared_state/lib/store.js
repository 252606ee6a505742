// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import * as scripts from "./scripts.js";
import { redisKeys } from "./keys.js";

const MS_UNCONFIRMED = 50;
const MS_FAILURES_COUNT = 60000;
// An open circuit is forgotten after so many periods: turns then find out, should trials be refused for their own sake.
const OPEN_PERIODS = 20;
const MOST_EVENTS = 1000;
const EVENT_TTL_SECONDS = 604800;
// As long as an ingress may be away that has to look at it.
const ARRIVAL_TTL_SECONDS = 3600;
// Nobody is as late as that for a slot; a job's own record outlives it, whatever its schedule: it keeps old slots away.
const CRON_CLAIM_SECONDS = 172800;
const CRON_JOB_SECONDS = 34560000;
// What a run may take beyond the longest turn: the way there, and what the gateway does after the answer.
const CRON_GRACE_MS = 60000;

/** Times of Redis are told as durations, so that clocks of hosts may differ. */
const circuitOf = ([state, failures, untilMs, openMs]) => ({
  open: state !== "closed",
  failures,
  until: Date.now() + untilMs,
  since: Date.now() - openMs,
});

/**
 * What a turn sees when it starts.
 * @typedef {{epoch: number, seq: number, turns: import("./history.js").Turn[]}} View
 */

/** Conversations in Redis. Every method is one atomic script; all of them throw RedisAway when Redis is away. */
export class Store {
  #config;
  #link;
  #keys;
  #metrics;
  #confirmed = true;

  constructor({ config, link, metrics }) {
    this.#config = config;
    this.#link = link;
    this.#metrics = metrics;
    this.#keys = redisKeys(config.keyPrefix);
  }

  #eval(script, keys, args, options) {
    return this.#link.run((client) => client.eval(script, keys.length, ...keys, ...args.map(String)), options);
  }

  /**
   * Takes or keeps the conversation's lock and reads what is new.
   * @param {View|null} known what the caller has read before; returned itself when it is still true
   * @returns {Promise<View|{busyMs: number}>}
   */
  async begin(conv, owner, known, options = {}) {
    const { session, lock, conversation } = this.#keys;
    const { lockLeaseMs, conversationTtlSeconds, maxTurns } = this.#config;
    const [kind, ...rest] = await this.#eval(
      scripts.BEGIN,
      [lock(conv), session(conv), conversation(conv)],
      [owner, lockLeaseMs, conversationTtlSeconds, known ? `${known.epoch}:${known.seq}` : "", maxTurns],
      options,
    );
    if (kind === 0) return { busyMs: rest[0] };
    if (kind === 1) return known;
    const [epoch, seq, ...turns] = rest;
    return { epoch, seq, turns: turns.map((turn) => JSON.parse(turn)) };
  }

  /** Reads a conversation without its lock. @returns {Promise<View>} */
  async read(conv) {
    const { session, conversation } = this.#keys;
    return this.#link.run(async (client) => {
      const [epoch, seq] = await client.hmget(session(conv), "epoch", "turns");
      const turns = await client.lrange(conversation(conv), -this.#config.maxTurns, -1);
      return { epoch: Number(epoch ?? 0), seq: Number(seq ?? 0), turns: turns.map((turn) => JSON.parse(turn)) };
    });
  }

  /** @returns {Promise<boolean>} false when the lock belongs to somebody else now */
  async renew(conv, owner) {
    return (
      (await this.#eval(scripts.RENEW, [this.#keys.lock(conv)], [owner, this.#config.lockLeaseMs], { once: true })) ===
      1
    );
  }

  async release(conv, owner) {
    await this.#eval(scripts.RELEASE, [this.#keys.lock(conv)], [owner], { once: true });
  }

  /**
   * Appends a turn exactly once and releases the lock.
   * @param {{conv, owner: string, base: number|"", epoch: number|"", turn: object,
   *          idempotency?: {key: string, answer: object}}} record
   * @param {{mode: "next"|"kept", once?: boolean}} options next: right after `base`; kept: under the lock, maybe late
   * @returns {Promise<{status: string, seq: number, late: boolean, confirmed: boolean}>}
   */
  async commit({ conv, owner, base, epoch, turn, idempotency }, { mode, once = false }) {
    const { conversation, session, seen, lock, idempotency: idem, idle } = this.#keys;
    const { conversationTtlSeconds, maxTurns, replica, idempotencyTtlSeconds, waitReplicas, waitTimeoutMs } =
      this.#config;
    const keys = [
      conversation(conv),
      session(conv),
      seen(conv),
      lock(conv),
      idem(conv, idempotency?.key ?? ""),
      idle(),
    ];
    const args = [
      JSON.stringify(turn),
      turn.id,
      owner,
      base,
      epoch,
      conversationTtlSeconds,
      Date.now(),
      maxTurns,
      conv.channel,
      conv.user,
      turn.replica ?? replica,
      idempotency ? JSON.stringify(idempotency.answer) : "",
      idempotencyTtlSeconds,
      mode,
      turn.at,
      conv.id,
    ].map(String);
    // Any replica may be the next primary, so all are asked. What stood for a while is safe enough with one of them:
    // else a host that is gone for good would keep every turn on record.
    const wanted = mode === "kept" ? Math.min(1, waitReplicas) : waitReplicas;
    // Where confirmations fail just now, a turn does not wait the whole time for one more failure.
    const waitMs = this.#confirmed ? waitTimeoutMs : MS_UNCONFIRMED;
    const [[status, seq, late], replicas] = await this.#link.run(
      async (client) => {
        const pipeline = client.pipeline().eval(scripts.COMMIT, keys.length, ...keys, ...args);
        if (wanted > 0) pipeline.call("WAIT", String(wanted), String(waitMs));
        const answers = await pipeline.exec();
        for (const [error] of answers) if (error) throw error;
        return answers.map(([, value]) => value);
      },
      { client: "commits", once, writes: true },
    );
    const confirmed = wanted === 0 || replicas >= wanted;
    if (mode === "next" && (status === "committed" || status === "duplicate")) this.#confirmed = confirmed;
    if (status === "committed") this.#metrics.add("turns_committed");
    if (late) this.#metrics.add("turns_late");
    return { status, seq, late: Boolean(late), confirmed };
  }

  async reset(conv, options = {}) {
    const { conversation, session, seen, idle } = this.#keys;
    await this.#eval(
      scripts.RESET,
      [conversation(conv), session(conv), seen(conv), idle()],
      [this.#config.conversationTtlSeconds, conv.id],
      options,
    );
  }

  /** Keeps the newest `keep` turns. @returns {Promise<{before: number, after: number}>} */
  async compact(conv, keep) {
    const { conversation, session, idle } = this.#keys;
    const [before, after] = await this.#eval(
      scripts.COMPACT,
      [conversation(conv), session(conv), idle()],
      [keep, this.#config.conversationTtlSeconds, conv.id],
    );
    return { before, after };
  }

  /**
   * Claims a key for one owner.
   * @returns {Promise<null|{state: string, owner?: string, fingerprint?: string}>} null = claimed, else its value
   */
  async claim(key, owner, leaseMs, fingerprint = "", options = {}) {
    const present = await this.#eval(scripts.CLAIM, [key], [owner, leaseMs, fingerprint], options);
    return present === "" ? null : JSON.parse(present);
  }

  /**
   * Gives a claim back (value null), or stores its outcome for ttlSeconds.
   * @returns {Promise<boolean>} false: it is somebody else's by now, or settled already
   */
  async settle(key, owner, value, ttlSeconds, options = {}) {
    const args = [owner, value ? JSON.stringify(value) : "", ttlSeconds];
    return (await this.#eval(scripts.SETTLE, [key], args, options)) !== 0;
  }

  idempotencyKey(conv, key) {
    return this.#keys.idempotency(conv, key);
  }
  dedupeKey(parts) {
    return this.#keys.dedupe(parts);
  }

  /** What Redis knows of several providers. @returns {Promise<import("./circuit.js").Circuit[]>} */
  async circuits(ids) {
    const answers = await this.#eval(scripts.CIRCUITS, ids.map(this.#keys.circuit), [], { once: true });
    return answers.map(circuitOf);
  }

  /**
   * Counts a failure of a provider.
   * @param {{reason: string, to: string, trial: boolean, failures: number}} failure to: the next provider; trial:
   *   nobody's turn; failures: as many in a row open the circuit
   * @returns {Promise<import("./circuit.js").Circuit & {opened: boolean}>}
   */
  async circuitFailed(id, { reason, to, trial, failures }) {
    const { circuit, trial: lease, events } = this.#keys;
    const { breakerOpenSeconds, replica } = this.#config;
    const openMs = breakerOpenSeconds * 1000;
    const answer = await this.#eval(
      scripts.CIRCUIT_FAILED,
      [circuit(id), lease(id), events()],
      [
        failures,
        openMs,
        MS_FAILURES_COUNT,
        openMs * OPEN_PERIODS,
        reason,
        replica,
        id,
        to,
        trial ? 1 : 0,
        MOST_EVENTS,
        EVENT_TTL_SECONDS,
      ],
      { once: true },
    );
    return { ...circuitOf(answer), opened: answer[4] === 1 };
  }

  /** @returns {Promise<import("./circuit.js").Circuit & {mine: boolean}>} mine: this replica tries the provider now */
  async circuitTrial(id, leaseMs) {
    const { circuit, trial } = this.#keys;
    const args = [this.#config.replica, leaseMs];
    const answer = await this.#eval(scripts.CIRCUIT_TRIAL, [circuit(id), trial(id)], args, { once: true });
    return { ...circuitOf(answer), mine: answer[4] === 1 };
  }

  /** The provider has answered. @returns {Promise<number|null>} how long its circuit was open (ms); null: it was not */
  async circuitClosed(id, { from }) {
    const { circuit, trial, events } = this.#keys;
    const openMs = await this.#eval(
      scripts.CIRCUIT_CLOSED,
      [circuit(id), trial(id), events()],
      [this.#config.replica, id, from, MOST_EVENTS, EVENT_TTL_SECONDS],
      { once: true },
    );
    return openMs < 0 ? null : openMs;
  }

  /** @param {import("./limits.js").Limit[]} limits @returns {Promise<number>} ms to wait; 0 = taken */
  async takeTokens(limits) {
    const keys = limits.map(({ name }) => this.#keys.bucket(name));
    const args = limits.flatMap(({ perMinute, burst }) => [perMinute, burst]);
    return this.#eval(scripts.TAKE_TOKENS, keys, args, { once: true });
  }

  /**
   * Deletes some of the longest idle histories, if the memory of Redis is fuller than allowed.
   * @param {{above: number, until: number, idleMs: number, most: number, skip: number}} options
   *   above, until: percent of maxmemory; skip: so many of the longest idle ones are left out
   * @returns {Promise<{used: number, max: number, dropped: number, freed: number, passed: number, more: boolean}>}
   *   used, max, freed: bytes; passed: locked ones; more: not enough yet, and there are more to look at
   */
  async makeRoom({ above, until, idleMs, most, skip }) {
    const { conversation, session, lock, idle } = this.#keys;
    const names = [conversation, session, lock].map((name) => name({ id: "" }));
    const args = [above, until, idleMs, most, skip, ...names].map(String);
    const [used, max, dropped, freed, passed, more] = await this.#link.aside((client) =>
      client.eval(scripts.MAKE_ROOM, 1, idle(), ...args),
    );
    return { used, max, dropped, freed, passed, more: more === 1 };
  }

  /** Tells of dropped histories in the stream of events. */
  async tellDropped(conversations, bytes) {
    const args = [this.#config.replica, conversations, bytes, MOST_EVENTS, EVENT_TTL_SECONDS].map(String);
    await this.#link.aside((client) => client.eval(scripts.DROPPED, 1, this.#keys.events(), ...args));
  }

  /**
   * Claims a slot of a scheduled job over all replicas. Confirmed by replicas of Redis before the run begins, as far as
   * there are any: a failover in between would let another replica run it again.
   * @param {{job: string, slot: number, run: string, schedule: string, due: number[]}} tick run: unique; due: earlier
   *   slots that this replica did not claim, to be told of if nobody has
   * @returns {Promise<{mine: boolean, unfinished: number, missed: number, confirmed: boolean}>}
   */
  async cronClaim({ job, slot, run, schedule, due }) {
    const { cronSlot, cronJob, cronOpen, events } = this.#keys;
    const { replica, turnTimeoutSeconds, waitReplicas, waitTimeoutMs } = this.#config;
    const keys = [cronSlot(job, slot), cronJob(job), cronOpen(job), events()];
    const args = [
      slot,
      job,
      replica,
      run,
      turnTimeoutSeconds * 1000 + CRON_GRACE_MS,
      CRON_CLAIM_SECONDS,
      CRON_JOB_SECONDS,
      schedule,
      cronSlot(job, ""),
      MOST_EVENTS,
      EVENT_TTL_SECONDS,
      ...due,
    ].map(String);
    return this.#link.run(
      async (client) => {
        const [mine, unfinished, missed] = await client.eval(scripts.CRON_CLAIM, keys.length, ...keys, ...args);
        const asked = mine === 1 && waitReplicas > 0;
        const confirmed = !asked || (await client.call("WAIT", String(waitReplicas), String(waitTimeoutMs))) >= waitReplicas;
        return { mine: mine === 1, unfinished, missed, confirmed };
      },
      { client: "commits", writes: true },
    );
  }

  /** The run of a claimed slot has ended. @param {{job, slot, run, ok: boolean, next: number|""}} end */
  async cronDone({ job, slot, run, ok, next }, options = {}) {
    const { cronSlot, cronJob, cronOpen } = this.#keys;
    const args = [slot, run, ok ? 1 : 0, next, CRON_CLAIM_SECONDS];
    await this.#eval(scripts.CRON_DONE, [cronSlot(job, slot), cronJob(job), cronOpen(job)], args, options);
  }

  /** Replaces this replica's counters. */
  /** Says of a provider's events that this gateway is through with them. @param {{name: string, status: string}[]} events */
  async tellArrivals(events) {
    await this.#link.run(
      async (client) => {
        const pipeline = client.pipeline();
        for (const { name, status } of events) pipeline.set(this.#keys.arrival(name), status, "EX", ARRIVAL_TTL_SECONDS);
        for (const [error] of await pipeline.exec()) if (error) throw error;
      },
      { once: true, writes: true },
    );
  }

  async writeMetrics(fields) {
    const key = this.#keys.metrics(this.#config.replica);
    await this.#link.run(
      (client) => client.multi().del(key).hset(key, fields).expire(key, this.#config.metricsTtlSeconds).exec(),
      { once: true },
    );
  }
}
