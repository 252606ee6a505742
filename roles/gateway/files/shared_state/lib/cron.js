// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { randomUUID } from "node:crypto";
import { RedisAway } from "./outage.js";

const OURS = "ha:";
const MOST_DUE = 100;
const RETRY_MS = 30000;

// The service, the hooks and a runtime that replaces another one need the same: see lib/runtime.js about globalThis.
const SLOT = Symbol.for("openclaw.ha.shared-state.cron");

/**
 * What this process knows of its scheduler, whatever runtime asks.
 * @typedef {{getCron: Function|null, ids: Map<string, string>|null, held: Map<string, object>}} Scheduler
 *   ids: our jobs' keys by the gateway's id, null until they were read once; held: slots that this process is running
 * @returns {Scheduler}
 */
export const processScheduler = () => (globalThis[SLOT] ??= { getCron: null, ids: null, held: new Map() });

const keyOf = ({ declarationKey }) => (declarationKey?.startsWith(OURS) ? declarationKey.slice(OURS.length) : null);
const scheduleOf = ({ expr, tz }) => `${expr} ${tz ?? ""}`;

/** A job as the gateway's scheduler takes it. */
const declarationOf = ({ key, name, expr, tz, message, delivery }, timeoutSeconds) => ({
  declarationKey: OURS + key,
  name,
  enabled: true,
  // All replicas tick at the same moment: what is claimed is the slot, and an offset would differ by replica.
  schedule: { kind: "cron", expr, tz, staggerMs: 0 },
  sessionTarget: "isolated",
  wakeMode: "now",
  // Without a limit a run may take an hour, and its claim would count as given up long before.
  payload: { kind: "agentTurn", message, timeoutSeconds },
  delivery: delivery ?? { mode: "none" },
});

/**
 * The slot that a job is run for now, or null when this is none: a gateway that catches up after its start, or tries again
 * after an error, puts such a run at some odd moment, and another replica had the slot. One that somebody asks a gateway
 * for looks like the next slot; it is not to be told from a tick, so it is none either.
 */
export function slotOf({ schedule, state }, now = Date.now()) {
  const slot = state?.nextRunAtMs;
  if (!Number.isInteger(slot) || slot > now || slot === state.startupCatchupAtMs) return null;
  const grain = schedule?.expr?.trim().split(/\s+/).length > 5 ? 1000 : 60000;
  return slot % grain === 0 ? slot : null;
}

/**
 * The cluster's scheduled jobs. Every replica has all of them in its own scheduler and ticks; who claims a slot in Redis
 * runs it. Never twice comes before never missed: without Redis nobody runs, and what was missed is told.
 */
export class Cron {
  #config;
  #store;
  #log;
  #metrics;
  #scheduler;
  #work = Promise.resolve();
  #timer;
  /** Slots that were due here and not claimed by this replica, by job. @type {Map<string, Set<number>>} */
  #due = new Map();
  /** Ends of runs that Redis was not told of. */
  #untold = [];

  /** @param {{config: object, store, log, metrics, scheduler?: Scheduler}} options */
  constructor({ config, store, log, metrics, scheduler = processScheduler() }) {
    this.#config = config;
    this.#store = store;
    this.#log = log;
    this.#metrics = metrics;
    this.#scheduler = scheduler;
  }

  /** @param {() => object|undefined} getCron the scheduler of the moment: a reload of the gateway replaces it */
  start(getCron) {
    this.#scheduler.getCron = getCron;
    return this.reconcile();
  }

  stop() {
    clearTimeout(this.#timer);
    this.#timer = null;
  }

  /** Makes the scheduler's jobs those of the settings; other jobs than ours are left alone. Never throws. */
  reconcile() {
    clearTimeout(this.#timer);
    this.#work = this.#work
      .then(() => this.#reconcile())
      .catch((error) => {
        this.#metrics.add("cron_reconcile_errors");
        this.#log.error(`The scheduled jobs could not be set up (${error.message}); they will be tried again`);
        if (this.#timer === null) return;
        this.#timer = setTimeout(() => this.reconcile(), RETRY_MS);
        this.#timer.unref();
      });
    return this.#work;
  }

  async #reconcile() {
    const cron = this.#scheduler.getCron?.();
    if (!cron) return;
    const { jobs, turnTimeoutSeconds } = this.#config;
    const declared = new Set(jobs.map(({ key }) => key));
    const present = await this.#list(cron);
    for (const job of present) {
      const key = keyOf(job);
      if (key === null || declared.has(key)) continue;
      await cron.remove(job.id);
      this.#log.info(`The scheduled job ${key} is no longer declared and was removed`);
    }
    for (const job of jobs) {
      const { id, enabled } = await cron.add(declarationOf(job, turnTimeoutSeconds));
      this.#scheduler.ids.set(id, job.key);
      // Declaring it again does not enable what the gateway gave up after many errors.
      if (enabled === false) await cron.update(id, { enabled: true });
    }
  }

  /** All jobs; remembers which of them are ours. */
  async #list(cron) {
    const jobs = await cron.list({ includeDisabled: true });
    this.#scheduler.ids = new Map(jobs.map((job) => [job.id, keyOf(job)]).filter(([, key]) => key !== null));
    return jobs;
  }

  /**
   * A run is about to begin. Never throws: the gateway would run it.
   * @returns {Promise<undefined|{handled: true}>} undefined: it goes on here
   */
  async beforeReply({ jobId }) {
    if (!jobId) return undefined;
    try {
      return (await this.#mayRun(jobId)) ? undefined : { handled: true };
    } catch (error) {
      this.#metrics.add("cron_errors");
      this.#log.error(`A scheduled job is not run here, because its claim failed: ${error.message}`);
      return { handled: true };
    }
  }

  async #mayRun(jobId) {
    const job = await this.#find(jobId);
    // Where nothing is known of any job, it is somebody else's only if there are none of ours.
    if (job === undefined) return !this.#config.jobs.length;
    if (job === null) return true;
    const key = keyOf(job) ?? this.#scheduler.ids.get(jobId);
    const slot = job.schedule ? slotOf(job) : null;
    if (slot === null) {
      this.#metrics.add("cron_unscheduled");
      this.#log.info(`A run of the scheduled job ${key} outside of its schedule is left out`);
      return false;
    }
    if (this.#scheduler.held.get(jobId)?.slot === slot) return true;
    return this.#claim(jobId, key, slot, scheduleOf(job.schedule));
  }

  /** @returns {Promise<object|null|undefined>} the job, {} if it is ours and cannot be read; null: not ours; undefined: unknown */
  async #find(jobId) {
    const { ids, getCron } = this.#scheduler;
    try {
      const job = (await this.#list(getCron())).find(({ id }) => id === jobId);
      return job && keyOf(job) !== null ? job : null;
    } catch {
      if (ids) return ids.has(jobId) ? {} : null;
      return undefined;
    }
  }

  async #claim(jobId, key, slot, schedule) {
    const due = [...(this.#due.get(key) ?? [])].filter((other) => other < slot);
    const run = randomUUID();
    try {
      const answer = await this.#store.cronClaim({ job: key, slot, run, schedule, due });
      for (const told of [...due, slot]) this.#due.get(key)?.delete(told);
      this.#metrics.add("cron_unfinished", answer.unfinished);
      this.#metrics.add("cron_missed", answer.missed);
      this.#metrics.add(answer.mine ? "cron_claimed" : "cron_skipped");
      if (!answer.confirmed) this.#metrics.add("cron_unconfirmed");
      if (answer.unfinished || answer.missed) {
        const told = `runs that nobody ended: ${answer.unfinished}, that nobody began: ${answer.missed}`;
        this.#log.warn(`Scheduled job ${key}: ${told}`);
      }
      if (answer.mine) this.#scheduler.held.set(jobId, { job: key, slot, run });
      return answer.mine;
    } catch (error) {
      if (!(error instanceof RedisAway)) throw error;
      this.#metrics.add("cron_skipped_redis_away");
      this.#log.warn(`The scheduled job ${key} is not run: without Redis nobody knows whether another one runs it`);
      this.#expect(key, slot);
      return false;
    }
  }

  /** Remembers a slot, to tell of it if nobody claims it. */
  #expect(key, slot) {
    if (!this.#due.has(key)) this.#due.set(key, new Set());
    const due = this.#due.get(key).add(slot);
    if (due.size > MOST_DUE) due.delete(due.values().next().value);
  }

  /** The scheduler tells what became of a job. */
  async changed({ action, jobId, job, status, nextRunAtMs }) {
    if (action !== "finished") return;
    const { held: running, ids } = this.#scheduler;
    const held = running.get(jobId);
    const key = held?.job ?? ids?.get(jobId);
    if (key === undefined) return;
    const next = job ? slotOf({ ...job, state: { nextRunAtMs } }, Infinity) : null;
    if (next) this.#expect(key, next);
    if (!held) return;
    running.delete(jobId);
    this.#untold.push({ ...held, ok: status === "ok", next: next ?? "" });
    await this.tell();
  }

  /** Tells Redis of ended runs, now or when it is back. */
  async tell() {
    for (const end of this.#untold.splice(0)) {
      try {
        await this.#store.cronDone(end);
      } catch (error) {
        if (error instanceof RedisAway) this.#untold.push(end);
        else this.#log.error(`The end of a run of ${end.job} was refused by Redis: ${error.message}`);
      }
    }
  }

  /** @returns {object} for the health route: since the start of this process */
  health() {
    const counts = ["claimed", "skipped", "skipped_redis_away", "unfinished", "missed"];
    return {
      jobs: this.#config.jobs.length,
      ...Object.fromEntries(counts.map((name) => [name, this.#metrics.get(`cron_${name}`)])),
    };
  }
}
