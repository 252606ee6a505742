// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";

const POLL_MS = 40;

/** Another turn held the conversation for longer than we may wait. */
export class Busy extends Error {
  constructor(conv) {
    super(`conversation ${conv.id} is busy`);
    this.name = "Busy";
  }
}

/** One turn's right to extend one conversation, with a lease that a timer renews. */
export class ConversationLock {
  #store;
  #config;
  #timer;
  #view = null;

  /**
   * @param {import("./store.js").Store} store
   * @param {object} config
   * @param {import("./keys.js").Conversation} conv
   * @param {string} [owner] unique per turn
   */
  constructor(store, config, conv, owner = `${config.replica}/${randomUUID()}`) {
    this.#store = store;
    this.#config = config;
    this.conv = conv;
    this.owner = owner;
  }

  /** The latest view; null before the first acquire. @returns {import("./store.js").View|null} */
  get view() {
    return this.#view;
  }

  /**
   * Takes the lock or makes sure that it is still ours; when somebody else's turn came between, the conversation is
   * read again. Called at every assemble, so that a turn that was frozen past its lease goes on from what was said
   * meanwhile.
   * @param {{waitMs: number, signal?: AbortSignal, once?: boolean}} options
   * @returns {Promise<import("./store.js").View>}
   * @throws {Busy} when it stays taken for waitMs; RedisAway; AbortError
   */
  async acquire({ waitMs, signal, once = false }) {
    const deadline = Date.now() + waitMs;
    for (;;) {
      signal?.throwIfAborted();
      const view = await this.#store.begin(this.conv, this.owner, this.#view, { once });
      if (!("busyMs" in view)) {
        this.#view = view;
        if (signal?.aborted) {
          await this.release();
          signal.throwIfAborted();
        }
        this.#startRenewal();
        return this.#view;
      }
      if (Date.now() >= deadline) throw new Busy(this.conv);
      await sleep(POLL_MS + Math.random() * POLL_MS, undefined, { signal });
    }
  }

  /** Gives the lock back; one that cannot be given back ends with its lease. */
  async release() {
    const held = this.#timer !== undefined;
    this.forget();
    if (held) await this.#store.release(this.conv, this.owner).catch(() => {});
  }

  /** Stops renewing: the lock was released together with a commit, or a spooled turn will use it up. */
  forget() {
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  #startRenewal() {
    if (this.#timer) return;
    const { lockLeaseMs, turnTimeoutSeconds } = this.#config;
    const until = Date.now() + (turnTimeoutSeconds + 60) * 1000;
    this.#timer = setInterval(() => {
      // A turn that never ended must not hold its conversation for ever.
      if (Date.now() > until) this.forget();
      else this.#store.renew(this.conv, this.owner).catch(() => {});
    }, lockLeaseMs / 3);
    this.#timer.unref();
  }
}
