// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { setTimeout as sleep } from "node:timers/promises";
import { RedisAway } from "./outage.js";

const POLL_MS = 100;
const LEASE_MS = 10000;
const RETRY_MS = 500;

/** A thing that must happen once over all replicas: taken with a lease, renewed while it runs, then settled. */
export class Claim {
  #store;
  #key;
  #owner;
  #fingerprint;
  #timer;
  #settling;

  constructor(store, key, owner, fingerprint = "") {
    this.#store = store;
    this.#key = key;
    this.#owner = owner;
    this.#fingerprint = fingerprint;
  }

  get owner() {
    return this.#owner;
  }

  /**
   * Takes the claim, or waits for the one who has it.
   * @param {{waitMs: number, signal?: AbortSignal, keepMs: number}} options keepMs: how long to renew at most
   * @returns {Promise<null|object>} null = taken; else what is stored: the state it was settled with, or "running" after waitMs
   * @throws {RedisAway}
   */
  async take({ waitMs, signal, keepMs }) {
    const deadline = Date.now() + waitMs;
    for (;;) {
      signal?.throwIfAborted();
      const present = await this.#store.claim(this.#key, this.#owner, LEASE_MS, this.#fingerprint);
      if (present === null) {
        this.#renew(Date.now() + keepMs);
        return null;
      }
      const mine = present.fingerprint === this.#fingerprint;
      if (present.state !== "running" || !mine || Date.now() >= deadline) return present;
      await sleep(POLL_MS, undefined, { signal });
    }
  }

  /**
   * Gives it back (no value), or stores its result.
   * @param {object|null} value
   * @param {number} ttlSeconds
   * @param {{triesMs?: number}} options triesMs: how long to try while Redis is away; once without it
   * @returns {Promise<boolean>} false: it is somebody else's
   */
  async settle(value, ttlSeconds = 0, { triesMs = 0 } = {}) {
    clearInterval(this.#timer);
    const mine = (this.#settling = {});
    const deadline = Date.now() + triesMs;
    for (;;) {
      try {
        return await this.#store.settle(this.#key, this.#owner, value, ttlSeconds, { once: true });
      } catch (error) {
        // What is settled anew is not overwritten by what was to be stored before.
        if (!(error instanceof RedisAway) || this.#settling !== mine || Date.now() >= deadline) return true;
      }
      await sleep(RETRY_MS, undefined, { ref: false });
    }
  }

  /** It is somebody else's: nothing is written any more. */
  abandon() {
    clearInterval(this.#timer);
  }

  /** Has somebody else got it, because it could not be renewed? While Redis is away nobody has. */
  async lost() {
    const present = await this.#store
      .claim(this.#key, this.#owner, LEASE_MS, this.#fingerprint, { once: true })
      .catch(() => null);
    // What is somebody else's is not taken back behind their back.
    if (present !== null) this.abandon();
    return present !== null;
  }

  #renew(until) {
    clearInterval(this.#timer);
    this.#timer = setInterval(() => {
      if (Date.now() > until) clearInterval(this.#timer);
      else this.#store.claim(this.#key, this.#owner, LEASE_MS, this.#fingerprint, { once: true }).catch(() => {});
    }, LEASE_MS / 3);
    this.#timer.unref();
  }
}
