// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { RedisAway } from "./outage.js";
import { Recent } from "./recent.js";

const LOCAL_BUCKETS = 10000;

/**
 * A token bucket: `burst` requests at once, then `perMinute` of them a minute.
 * @typedef {{name: string, perMinute: number, burst: number}} Limit
 */

/**
 * Takes one token from every bucket, or none from any.
 * @param {{tokens: number, at: number}[]} buckets one for each limit; undefined = full
 * @param {Limit[]} limits
 * @param {number} now ms
 * @returns {{waitMs: number, buckets: object[]}} waitMs: until all have one; 0 = taken
 */
export function take(buckets, limits, now) {
  const filled = limits.map(({ perMinute, burst }, index) => {
    const bucket = buckets[index] ?? { tokens: burst, at: now };
    return { tokens: Math.min(burst, bucket.tokens + (Math.max(0, now - bucket.at) * perMinute) / 60000), at: now };
  });
  const waits = filled.map(({ tokens }, index) => ((1 - tokens) * 60000) / limits[index].perMinute);
  const waitMs = Math.max(0, ...waits);
  if (waitMs > 0) return { waitMs: Math.ceil(waitMs), buckets: filled };
  return { waitMs: 0, buckets: filled.map(({ tokens, at }) => ({ tokens: tokens - 1, at })) };
}

/**
 * The limits that a request of this conversation meets; a rate of 0 is no limit.
 * @returns {Limit[]}
 */
export function limitsFor(conv, { requestsPerMinute = 0, perKeyPerMinute = 0, burst = 10 } = {}) {
  return [
    { name: "all", perMinute: requestsPerMinute, burst },
    { name: `key:${conv.id}`, perMinute: perKeyPerMinute, burst },
  ].filter(({ perMinute }) => perMinute > 0);
}

/** Rate limits counted over all replicas; by each replica for itself while Redis is away. */
export class Limiter {
  #config;
  #store;
  #metrics;
  #isAway;
  #local = new Recent(LOCAL_BUCKETS);

  constructor({ config, store, metrics, isAway }) {
    this.#config = config;
    this.#store = store;
    this.#metrics = metrics;
    this.#isAway = isAway;
  }

  /** @returns {Promise<number>} ms until the conversation may send again; 0 = now, and counted */
  async take(conv) {
    const limits = limitsFor(conv, this.#config.rateLimit);
    if (!limits.length) return 0;
    const waitMs = await this.#taken(limits);
    if (waitMs > 0) this.#metrics.add("rate_limited");
    return waitMs;
  }

  async #taken(limits) {
    if (!this.#isAway()) {
      try {
        return await this.#store.takeTokens(limits);
      } catch (error) {
        if (!(error instanceof RedisAway)) throw error;
      }
    }
    const { waitMs, buckets } = take(
      limits.map(({ name }) => this.#local.get(name)),
      limits,
      Date.now(),
    );
    limits.forEach(({ name }, index) => this.#local.set(name, buckets[index]));
    return waitMs;
  }
}
