// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { randomUUID } from "node:crypto";
import fs from "node:fs/promises";
import path from "node:path";

/**
 * Requests of POST /api/v1/message whose turn is running: one small file each, on disk before the turn begins.
 *
 * A gateway that dies between a turn's end and its commit finds the turn in its own outbox at its next start, without
 * the request that it answers. By then another replica may have answered the client's repetition: only the idempotency
 * key tells that the two are one.
 */
export class Asked {
  #dir;
  #ttlMs;
  #log;
  #left = []; // notes of an earlier life, oldest first
  #opened = 0; // when this life began, ms

  /** @param {{dir: string, ttlMs: number, log: object}} options ttlMs: as long as an idempotency key has a meaning */
  constructor({ dir, ttlMs, log }) {
    this.#dir = dir;
    this.#ttlMs = ttlMs;
    this.#log = log;
  }

  /** Reads what an earlier life of this gateway left. */
  async open() {
    this.#opened = Date.now();
    await fs.mkdir(this.#dir, { recursive: true, mode: 0o700 });
    for (const name of await fs.readdir(this.#dir)) {
      const file = path.join(this.#dir, name);
      const note = await fs.readFile(file, "utf8")
        .then(JSON.parse)
        .catch(() => null);
      // Half a note is one whose turn had not begun.
      if (note && note.at > Date.now() - this.#ttlMs) this.#left.push({ ...note, name });
      else await fs.rm(file, { force: true });
    }
    this.#left.sort((one, other) => one.at - other.at);
  }

  /**
   * Notes a request. A disk that refuses it does not stop the turn.
   * @param {string} sessionKey the session that will answer it
   * @param {import("./request.js").Request} request its text is not written
   * @returns {Promise<string>} the note's name
   */
  async begin(sessionKey, request) {
    const { message: _message, ...known } = request;
    const name = `${randomUUID()}.json`;
    try {
      const file = await fs.open(path.join(this.#dir, name), "wx", 0o600);
      try {
        await file.writeFile(JSON.stringify({ sessionKey, at: Date.now(), request: known }));
        await file.datasync();
      } finally {
        await file.close();
      }
    } catch (error) {
      this.#log.warn(
        `A request cannot be noted in ${this.#dir} (${error.message}): ` +
          "should this gateway die at the end of its turn, a repetition may be answered once more",
      );
    }
    return name;
  }

  /** The request's turn has ended, in whatever way. */
  async end(name) {
    await fs.rm(path.join(this.#dir, name), { force: true }).catch(() => {});
  }

  /**
   * The request that a turn of an earlier life answers: the session's newest one of before the turn.
   * @param {string} sessionKey
   * @param {number} at when the turn's user spoke, ms
   * @returns {Promise<import("./request.js").Request|undefined>}
   */
  async take(sessionKey, at) {
    // Of this life, its request is known: an older note is not its own.
    if (at > this.#opened) return undefined;
    const note = this.#left.findLast((one) => one.sessionKey === sessionKey && one.at <= at);
    if (!note) return undefined;
    this.#left = this.#left.filter((one) => one !== note);
    await this.end(note.name);
    return note.request;
  }
}
