// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import fs from "node:fs/promises";
import path from "node:path";

const HIGH_WATER = 0.8;
const NAME = /^\d{16}\.json$/;

/**
 * Turns that Redis has not (safely) got yet: one file each, numbered, flushed to disk before the turn is acknowledged,
 * and also in memory. Bounded; what does not fit is refused with a reason, never overwritten.
 *
 * A record is {op: "turn" | "confirm" | "reset", conv, ...}: a turn to append, a turn that is in Redis but was not
 * confirmed by a replica, a conversation to forget.
 */
export class Spool {
  #dir;
  #limits;
  #log;
  #metrics;
  #records = new Map(); // file name -> {record, bytes, durable}
  #byConversation = new Map(); // conversation id -> file names, oldest first
  #bytes = 0;
  #last = 0;
  #warned = false;

  constructor({ dir, maxRecords, maxBytes, log, metrics }) {
    this.#dir = dir;
    this.#limits = { maxRecords, maxBytes };
    this.#log = log;
    this.#metrics = metrics;
  }

  get size() {
    return this.#records.size;
  }
  get bytes() {
    return this.#bytes;
  }

  /** Reads what an earlier life of this gateway left. A file that cannot be read is set aside, not deleted. */
  async open() {
    await fs.mkdir(this.#dir, { recursive: true, mode: 0o700 });
    for (const name of (await fs.readdir(this.#dir)).filter((file) => NAME.test(file)).sort()) {
      const file = path.join(this.#dir, name);
      try {
        const text = await fs.readFile(file, "utf8");
        this.#remember(name, JSON.parse(text), Buffer.byteLength(text), true);
      } catch (error) {
        this.#log.error(`The kept turn ${file} cannot be read (${error.message}); it is set aside as ${name}.bad`);
        this.#metrics.add("spool_unreadable");
        await fs.rename(file, `${file}.bad`);
      }
      this.#last = Math.max(this.#last, Number(name.slice(0, 16)));
    }
  }

  /**
   * Keeps a record. When the disk refuses it, it is kept in memory only and said so.
   * @returns {Promise<string|null>} its name; null when the spool is full
   */
  async add(record) {
    const text = JSON.stringify(record);
    const bytes = Buffer.byteLength(text);
    if (this.size >= this.#limits.maxRecords || this.#bytes + bytes > this.#limits.maxBytes) {
      this.#metrics.add("spool_refused");
      this.#log.error(
        `The spool ${this.#dir} is full (${this.size} records, ${this.#bytes} bytes): ` +
          `a turn of ${record.conv.id} is only in this replica's own history`,
      );
      return null;
    }
    // Microseconds, and never less than the one before: the names are the order, also after a restart.
    this.#last = Math.max(this.#last + 1, Date.now() * 1000);
    const name = `${String(this.#last).padStart(16, "0")}.json`;
    this.#remember(name, record, bytes, false);
    try {
      await this.#write(name, text);
      if (this.#records.has(name)) this.#records.get(name).durable = true;
    } catch (error) {
      this.#metrics.add("spool_write_errors");
      this.#log.error(
        `A turn of ${record.conv.id} cannot be kept in ${this.#dir} (${error.message}); ` +
          "it is kept in memory and lost if this gateway ends before Redis is back",
      );
    }
    this.#checkHighWater();
    return name;
  }

  async remove(name) {
    const entry = this.#records.get(name);
    if (!entry) return;
    this.#records.delete(name);
    this.#bytes -= entry.bytes;
    const names = this.#byConversation.get(entry.record.conv.id).filter((other) => other !== name);
    if (names.length) this.#byConversation.set(entry.record.conv.id, names);
    else this.#byConversation.delete(entry.record.conv.id);
    await fs.rm(path.join(this.#dir, name), { force: true });
    this.#checkHighWater();
  }

  /** Takes a record out of the order for good and keeps its file for a human. */
  async setAside(name) {
    await fs.rename(path.join(this.#dir, name), path.join(this.#dir, `${name}.bad`)).catch(() => {});
    await this.remove(name);
  }

  /** Conversation ids with records, in the order of their oldest one. */
  conversations() {
    return [...this.#byConversation.keys()];
  }

  /** @returns {{name: string, record: object}[]} oldest first */
  recordsOf(conversationId) {
    return (this.#byConversation.get(conversationId) ?? []).map((name) => ({
      name,
      record: this.#records.get(name).record,
    }));
  }

  /** Turns that are not in Redis yet, since the last reset. @returns {import("./history.js").Turn[]} */
  pendingTurns(conversationId) {
    const records = this.recordsOf(conversationId).map(({ record }) => record);
    return records
      .slice(records.findLastIndex(({ op }) => op === "reset") + 1)
      .filter(({ op }) => op === "turn")
      .map(({ turn }) => turn);
  }

  /** Must something be written to Redis before the next turn of this conversation? */
  blocks(conversationId) {
    return this.recordsOf(conversationId).some(({ record }) => record.op !== "confirm");
  }

  #remember(name, record, bytes, durable) {
    this.#records.set(name, { record, bytes, durable });
    this.#bytes += bytes;
    const { id } = record.conv;
    this.#byConversation.set(id, [...(this.#byConversation.get(id) ?? []), name]);
  }

  async #write(name, text) {
    const temporary = path.join(this.#dir, `${name}.tmp`);
    const file = await fs.open(temporary, "w", 0o600);
    try {
      await file.writeFile(text);
      await file.sync();
    } finally {
      await file.close();
    }
    // Removed while it was being written: it has reached Redis already.
    if (!this.#records.has(name)) {
      await fs.rm(temporary, { force: true });
      return;
    }
    await fs.rename(temporary, path.join(this.#dir, name));
    const directory = await fs.open(this.#dir, "r");
    try {
      await directory.sync();
    } finally {
      await directory.close();
    }
  }

  #checkHighWater() {
    const share = Math.max(this.size / this.#limits.maxRecords, this.#bytes / this.#limits.maxBytes);
    if (share >= HIGH_WATER && !this.#warned) {
      this.#warned = true;
      this.#metrics.add("spool_high_water");
      this.#log.warn(
        `The spool ${this.#dir} is ${Math.round(share * 100)} % full (${this.size} records, ${this.#bytes} bytes)`,
      );
    }
    if (share < HIGH_WATER / 2) this.#warned = false;
  }
}
