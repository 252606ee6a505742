// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { storedUnhanded } from "./history.js";
import { ConversationLock } from "./lock.js";
import { RedisAway } from "./outage.js";

const RETRY_MS = 1000;

/**
 * Writes kept turns to Redis, in order within each conversation, under its lock. A turn that others overtook is flagged
 * late and put where its time belongs: turns of several replicas that could not see each other end up in order.
 */
export class Replayer {
  #spool;
  #store;
  #config;
  #log;
  #metrics;
  #timer;
  #running = new Map(); // conversation id -> promise
  #isAway;
  #onWritten;

  constructor({ spool, store, config, log, metrics, isAway, onWritten }) {
    this.#spool = spool;
    this.#store = store;
    this.#config = config;
    this.#log = log;
    this.#metrics = metrics;
    this.#isAway = isAway;
    this.#onWritten = onWritten;
  }

  start() {
    this.#timer = setInterval(() => void this.all(), RETRY_MS);
    this.#timer.unref();
  }

  stop() {
    clearInterval(this.#timer);
  }

  /** Tries every conversation once; quick when there is nothing to do. */
  async all() {
    if (this.#isAway()) return;
    for (const id of this.#spool.conversations()) {
      try {
        await this.conversation(id);
      } catch (error) {
        if (error instanceof RedisAway) return;
        this.#log.error(`Kept turns of ${id} cannot be written: ${error.message}`);
      }
    }
  }

  /** Writes what is kept for one conversation; concurrent callers share one attempt. */
  conversation(id) {
    if (!this.#running.has(id)) {
      this.#running.set(
        id,
        this.#replay(id).finally(() => this.#running.delete(id)),
      );
    }
    return this.#running.get(id);
  }

  async #replay(id) {
    for (const { name, record } of this.#spool.recordsOf(id)) {
      let done;
      try {
        done = await this.#write(record);
      } catch (error) {
        if (error instanceof RedisAway) throw error;
        if (error.name === "Busy") return;
        this.#log.error(`A kept turn of ${id} was refused by Redis (${error.message}); it is set aside as ${name}.bad`);
        this.#metrics.add("spool_set_aside");
        await this.#spool.setAside(name);
        continue;
      }
      if (!done) return;
      await this.#spool.remove(name);
    }
  }

  async #write(record) {
    const { conv, owner, op } = record;
    if (op === "reset") {
      await this.#store.reset(conv, { once: true });
      return true;
    }
    const lock = new ConversationLock(this.#store, this.#config, conv, owner);
    try {
      const view = await lock.acquire({ waitMs: 0, once: true });
      // Redis may have been away when the gateway handed it over.
      if (record.leftover && storedUnhanded(view.turns, record.turn)) {
        await lock.release();
        return true;
      }
      const { status, seq, late, confirmed } = await this.#store.commit(record, { mode: "kept", once: true });
      if (status === "fenced") return false;
      if (status === "committed" || status === "duplicate") this.#onWritten(conv, { ...record.turn, seq, late });
      if (status === "committed") {
        this.#metrics.add(op === "confirm" ? "turns_restored" : "turns_replayed");
        if (late) this.#log.warn(`A kept turn of ${conv.id} was written late: other replicas took turns meanwhile`);
      }
      if (status === "discarded" || status === "answered") {
        this.#metrics.add(`turns_${status}`);
        this.#log.warn(
          `A kept turn of ${conv.id} was not appended: ${
            status === "discarded"
              ? "the conversation was reset after it"
              : "its idempotency key was answered by another turn"
          }`,
        );
        return true;
      }
      // An appended turn that no replica confirmed stays on record until one does.
      if (!confirmed) record.op = "confirm";
      return confirmed;
    } finally {
      lock.forget();
    }
  }
}
