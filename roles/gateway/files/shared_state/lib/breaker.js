// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { afterFailure, CLOSED, enough, isDue, outcomeOf, route } from "./circuit.js";
import { RedisAway } from "./outage.js";
import { Recent } from "./recent.js";
import { tryProvider } from "./trial.js";

const TICK_MS = 1000;
/** What health() says may be this old. */
const VIEW_MS = 1000;
const RECENT_RUNS = 1000;

/**
 * The circuit breaker of the provider chain, shared by the replicas: after some failures in a row turns go to the next
 * provider at once, and one replica at a time asks the failed one until it answers. While Redis is away each replica
 * decides for itself. The last provider has no circuit, because nobody stands behind it.
 */
export class Breaker {
  #config;
  #store;
  #log;
  #metrics;
  #isAway;
  #chain;
  #try;
  /** What this replica knows of each provider; true while Redis is away. @type {Map<string, object>} */
  #known = new Map();
  /** Failure kind of the latest model call, by run. */
  #kinds = new Recent(RECENT_RUNS);
  /** Providers that a turn has asked, by run. @type {Recent} */
  #asked = new Recent(RECENT_RUNS);
  /** Providers that this replica is trying right now. */
  #trying = new Set();
  #timer;
  #viewed = -Infinity;

  constructor({ config, store, log, metrics, isAway, trial = tryProvider }) {
    this.#config = config;
    this.#store = store;
    this.#log = log;
    this.#metrics = metrics;
    this.#isAway = isAway;
    this.#try = trial;
    this.#chain = config.breakerFailures > 0 ? (config.providers ?? []) : [];
  }

  start() {
    if (this.#chain.length < 2) return;
    this.#timer = setInterval(() => void this.tick(), TICK_MS);
    this.#timer.unref();
  }

  stop() {
    clearInterval(this.#timer);
  }

  /**
   * Where a turn's next try goes.
   * @param {string} provider where it was meant to go
   * @param {string} model
   * @param {string} runId of the turn, the same for all its providers
   * @returns {Promise<{providerOverride: string, modelOverride: string}|undefined>} undefined: where it was meant to go
   */
  async select(provider, model, runId) {
    const index = this.#chain.findIndex((entry) => entry.id === provider && entry.model === model);
    if (index === -1 || this.#chain.length < 2) return undefined;
    await this.#refresh();
    const asked = this.#asked.get(runId) ?? [];
    const isOpen = (id) => this.#circuit(id).open;
    const target = this.#chain[route(this.#chain, index, isOpen, (id) => asked.includes(id))];
    if (runId) this.#asked.set(runId, [...asked, target.id]);
    if (target.id === provider) return undefined;
    this.#metrics.add("provider_redirected");
    return { providerOverride: target.id, modelOverride: target.model };
  }

  /**
   * Which providers turns are sent to, for the health route: true while the circuit is closed. It answers at once; what
   * other replicas have learned is fetched meanwhile, for the next question. The last provider has no circuit.
   * @returns {{provider: boolean|null, providers: Object<string, boolean>}} provider: the first one; null without circuits
   */
  health() {
    const guarded = this.#chain.slice(0, -1);
    if (guarded.length && Date.now() - this.#viewed >= VIEW_MS) {
      this.#viewed = Date.now();
      this.#refresh().catch((error) => this.#log.error(`The state of the providers cannot be read: ${error.stack}`));
    }
    const providers = Object.fromEntries(guarded.map(({ id }) => [id, !this.#circuit(id).open]));
    return { provider: guarded.length ? providers[guarded[0].id] : null, providers };
  }

  /** Notes how a model call ended; the attempt's end tells the rest. */
  modelCallEnded({ runId, outcome, failureKind }) {
    if (outcome === "error") this.#kinds.set(runId, failureKind);
    else this.#kinds.delete(runId);
  }

  /** Notes how an attempt at a provider ended. */
  async attemptEnded(event, provider) {
    const kind = this.#kinds.get(event.runId);
    this.#kinds.delete(event.runId);
    if (!this.#chain.slice(0, -1).some(({ id }) => id === provider)) return;
    const { answered, reason } = outcomeOf(event, kind);
    if (reason) await this.#failed(provider, reason);
    else if (answered) await this.#answered(provider);
  }

  /** Tries the providers whose time has come, unless another replica does. */
  async tick() {
    const due = this.#chain
      .slice(0, -1)
      .filter(({ id }) => isDue(this.#circuit(id), Date.now()) && !this.#trying.has(id));
    await Promise.all(
      due.map(async (entry) => {
        this.#trying.add(entry.id);
        try {
          await this.#trial(entry);
        } catch (error) {
          this.#log.error(`The trial of provider ${entry.id} went wrong: ${error.stack}`);
        } finally {
          this.#trying.delete(entry.id);
        }
      }),
    );
  }

  async #trial(entry) {
    const timeoutMs = entry.timeoutSeconds * 1000;
    const granted = await this.#shared(
      () => this.#store.circuitTrial(entry.id, timeoutMs + TICK_MS),
      () => ({ ...this.#circuit(entry.id), mine: true }),
    );
    this.#known.set(entry.id, granted);
    if (!granted.mine) return;
    this.#metrics.add("provider_trials");
    const reason = await this.#try({ ...entry, key: entry.keyVariable && process.env[entry.keyVariable], timeoutMs });
    if (reason) await this.#failed(entry.id, reason, true);
    else await this.#answered(entry.id);
  }

  async #failed(provider, reason, trial = false) {
    this.#metrics.add("provider_failures");
    const before = this.#circuit(provider);
    const to = this.#next(provider);
    const failures = enough(reason, this.#config.breakerFailures);
    const openMs = this.#config.breakerOpenSeconds * 1000;
    const after = await this.#shared(
      () => this.#store.circuitFailed(provider, { reason, to, trial, failures }),
      () => {
        const next = before.open && !trial ? before : afterFailure(before, Date.now(), { failures, openMs });
        return { ...next, opened: next.open && !before.open };
      },
    );
    this.#known.set(provider, after);
    if (!after.opened) return;
    this.#metrics.add("provider_switches");
    this.#log.warn(
      `event=provider_switched from=${provider} to=${to} reason=${reason} failures=${after.failures} ` +
        `next_trial_s=${this.#config.breakerOpenSeconds}`,
    );
  }

  async #answered(provider) {
    const before = this.#circuit(provider);
    if (!before.open && !before.failures) return;
    const from = this.#next(provider);
    const lastedMs = await this.#shared(
      () => this.#store.circuitClosed(provider, { from }),
      () => (before.open ? Date.now() - before.since : null),
    );
    this.#known.set(provider, CLOSED);
    if (lastedMs === null) return;
    this.#metrics.add("provider_returns");
    this.#log.warn(`event=provider_back to=${provider} from=${from} after_s=${Math.round(lastedMs / 1000)}`);
  }

  async #refresh() {
    const ids = this.#chain.slice(0, -1).map(({ id }) => id);
    const circuits = await this.#shared(
      () => this.#store.circuits(ids),
      () => null,
    );
    circuits?.forEach((circuit, index) => this.#known.set(ids[index], circuit));
  }

  /** Asks Redis; this replica alone while Redis is away. Nobody waits for a failover here. */
  async #shared(inRedis, alone) {
    if (this.#isAway()) return alone();
    try {
      return await inRedis();
    } catch (error) {
      if (!(error instanceof RedisAway)) throw error;
      return alone();
    }
  }

  /** Where turns go instead, as far as this replica knows. */
  #next(provider) {
    const index = this.#chain.findIndex(({ id }) => id === provider) + 1;
    return this.#chain[route(this.#chain, index, (id) => this.#circuit(id).open)].id;
  }

  #circuit(id) {
    return this.#known.get(id) ?? CLOSED;
  }
}
