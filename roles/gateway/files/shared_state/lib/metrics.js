// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

const FLUSH_MS = 10000;

/** Counters of this replica since its start, written to Redis every ten seconds. */
export class Metrics {
  #counters = new Map();
  #timer;

  add(name, amount = 1) {
    this.#counters.set(name, (this.#counters.get(name) ?? 0) + amount);
  }
  get(name) {
    return this.#counters.get(name) ?? 0;
  }
  snapshot() {
    return Object.fromEntries([...this.#counters].sort(([a], [b]) => (a < b ? -1 : 1)));
  }

  /**
   * @param {(fields: object) => Promise<void>} write
   * @param {() => object} gauges values that are not counters
   */
  start(write, gauges) {
    const flush = () => write({ ...gauges(), ...this.snapshot(), updated_at: Date.now() }).catch(() => {});
    void flush();
    this.#timer = setInterval(flush, FLUSH_MS);
    this.#timer.unref();
  }

  stop() {
    clearInterval(this.#timer);
  }
}
