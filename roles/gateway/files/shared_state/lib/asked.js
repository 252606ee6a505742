// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { randomUUID } from "node:crypto";
import fs from "node:fs/promises";
import path from "node:path";
import { plain } from "./history.js";

// The gateway begins a turn at once, also one that nobody waits for any more, unless it stood still.
const BEGINS_MS = 60000;
const GRACE_MS = 60000;

/**
 * Requests of POST /api/v1/message whose turn may still be stored: one small file each, on disk before the turn begins.
 *
 * Only the idempotency key tells that a turn and the repetition of its request are one. It is not at hand when a gateway
 * that died between a turn's end and its commit finds the turn in its own outbox at its next start, nor when the request
 * was cut off and the gateway, which stood still meanwhile, runs its turn all the same. By then another replica may have
 * answered the repetition.
 */
export class Asked {
  #dir;
  #ttlMs;
  #turnMs;
  #log;
  #left = []; // notes of an earlier life, oldest first
  #notes = new Map(); // notes of this life by name, oldest first
  #opened = 0; // when this life began, ms

  /**
   * @param {{dir: string, ttlMs: number, turnMs: number, log: object}} options ttlMs: as long as an idempotency key has
   *   a meaning; turnMs: the longest turn
   */
  constructor({ dir, ttlMs, turnMs, log }) {
    this.#dir = dir;
    this.#ttlMs = ttlMs;
    this.#turnMs = turnMs;
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
    const at = Date.now();
    this.#notes.set(name, { name, sessionKey, at, request });
    try {
      const file = await fs.open(path.join(this.#dir, name), "wx", 0o600);
      try {
        await file.writeFile(JSON.stringify({ sessionKey, at, request: known }));
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
    this.#notes.delete(name);
    await fs.rm(path.join(this.#dir, name), { force: true }).catch(() => {});
  }

  /** Nobody waits for the request's turn any more, which the gateway may still run and store. */
  giveUp(name) {
    setTimeout(() => void this.end(name), this.#turnMs + GRACE_MS).unref();
  }

  /**
   * The request that a turn answers: of this life one with its words, of an earlier one the session's newest of before it.
   * @param {string} sessionKey
   * @param {{said: number, text: string}} turn when its user spoke (ms), and what
   * @returns {Promise<import("./request.js").Request|undefined>}
   */
  async take(sessionKey, { said, text }) {
    const before = (note) => note.sessionKey === sessionKey && note.at <= said;
    // What the gateway kept of a turn without an end stands in front of the words of the next one.
    const meant = ({ at, request }) => said < at + BEGINS_MS && plain(text).endsWith(plain(request.message));
    const note =
      said > this.#opened
        ? [...this.#notes.values()].findLast((one) => before(one) && meant(one))
        : this.#left.findLast(before);
    if (!note) return undefined;
    this.#left = this.#left.filter((one) => one !== note);
    await this.end(note.name);
    return note.request;
  }
}
