// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { setTimeout as sleep } from "node:timers/promises";

const POLL_MS = 100;
const LEASE_MS = 10000;

/** A thing that must happen once over all replicas: taken with a lease, renewed while it runs, then settled. */
export class Claim {
  #store;
  #key;
  #owner;
  #fingerprint;
  #timer;

  constructor(store, key, owner, fingerprint = "") {
    this.#store = store;
    this.#key = key;
    this.#owner = owner;
    this.#fingerprint = fingerprint;
  }

  /**
   * Takes the claim, or waits for the one who has it.
   * @param {{waitMs: number, signal?: AbortSignal, keepMs: number}} options keepMs: how long to renew at most
   * @returns {Promise<null|object>} null = taken; else what is stored: state "done", or "running" after waitMs
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
      if (present.state === "done" || !mine || Date.now() >= deadline) return present;
      await sleep(POLL_MS, undefined, { signal });
    }
  }

  /** Gives it back (no value), or stores its result. */
  async settle(value, ttlSeconds = 0) {
    clearInterval(this.#timer);
    await this.#store.settle(this.#key, this.#owner, value, ttlSeconds, { once: true }).catch(() => {});
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
