// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { isOutage } from "./outage.js";

const LOOK_MS = 10000;
// Every turn that is refused asks for room: where there is none to be had, this often is enough.
const REFUSED_LOOK_MS = 1000;
/** Percent of maxmemory in use above which room is made, and down to which. */
const FULL = 85;
const ENOUGH = 80;
const IDLE_MS = 60000;
// Redis serves nobody else meanwhile: some milliseconds.
const BATCH = 50;

const megabytes = (bytes) => (bytes / 1048576).toFixed(1);

/**
 * Keeps the memory of Redis from getting full, because what Redis itself would evict may be a lock, a number or a
 * journal: drops the histories of the conversations that were idle for longest, and nothing else. Every replica looks.
 */
export class Memory {
  #store;
  #log;
  #metrics;
  #idleMs;
  #timer;
  #stopped = false;
  #endedAt = -Infinity;
  #complained = false;
  /** The look under way. @type {Promise<void>|null} */
  #looking = null;

  /**
   * @param {object} options
   * @param {import("./store.js").Store} options.store
   * @param {{warn: Function, error: Function}} options.log
   * @param {import("./metrics.js").Metrics} options.metrics
   * @param {number} [options.idleMs] conversations that were idle for less are kept
   */
  constructor({ store, log, metrics, idleMs = IDLE_MS }) {
    this.#store = store;
    this.#log = log;
    this.#metrics = metrics;
    this.#idleMs = idleMs;
  }

  start() {
    this.#timer = setInterval(() => void this.look(), LOOK_MS);
    this.#timer.unref();
  }

  stop() {
    this.#stopped = true;
    clearInterval(this.#timer);
  }

  /** Redis has refused a write for want of memory. */
  full() {
    if (Date.now() - this.#endedAt >= REFUSED_LOOK_MS) void this.look();
  }

  /** Makes room if there is need. One look at a time; never throws. */
  look() {
    this.#looking ??= this.#round().finally(() => {
      this.#looking = null;
      this.#endedAt = Date.now();
    });
    return this.#looking;
  }

  async #round() {
    let room = { more: true };
    let above = FULL;
    let [dropped, freed, skip] = [0, 0, 0];
    try {
      while (room.more && !this.#stopped) {
        room = await this.#store.makeRoom({ above, until: ENOUGH, idleMs: this.#idleMs, most: BATCH, skip });
        above = ENOUGH;
        dropped += room.dropped;
        freed += room.freed;
        skip += room.passed;
      }
      this.#judge(room);
    } catch (error) {
      // When Redis is away, others say so.
      if (!isOutage(error)) this.#log.error(`The memory of Redis cannot be looked after: ${error.message}`);
    }
    if (dropped) await this.#tell(dropped, freed);
  }

  /** Complains, once, when there was no more to be dropped. */
  #judge({ used, max }) {
    const full = max > 0 && used > (max * FULL) / 100;
    if (full && !this.#complained) {
      this.#log.warn(
        `Redis uses ${megabytes(used)} of ${megabytes(max)} MB, and no conversation that can be dropped was idle for ` +
          `${this.#idleMs / 1000} s: when it is full, turns are kept on this host. Raise redis_maxmemory.`,
      );
    }
    this.#complained = full;
  }

  async #tell(dropped, freed) {
    this.#metrics.add("conversations_dropped", dropped);
    this.#log.warn(
      `event=conversations_dropped conversations=${dropped} freed_mb=${megabytes(freed)} (the longest idle ones; ` +
        "the memory of Redis was nearly full: to keep more, raise redis_maxmemory)",
    );
    await this.#store.tellDropped(dropped, freed).catch(() => {});
  }
}
