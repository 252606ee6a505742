// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import path from "node:path";
import { DatabaseSync } from "node:sqlite";

/**
 * The gateway's own queue of what providers have delivered, read only: table channel_ingress_events (2026.9.5, 2026.9.6).
 * Nobody promises that it stays as it is.
 */
export class Queue {
  #file;
  #database = null;

  /** @param {string|undefined} stateDir the gateway's; without it there is nothing to read */
  constructor(stateDir) {
    this.#file = path.join(stateDir ?? "", "state", "openclaw.sqlite");
  }

  /** @returns {object[]} rows @throws {Error} when this release keeps it otherwise */
  all(sql, ...values) {
    this.#database ??= new DatabaseSync(this.#file, { readOnly: true });
    return this.#database.prepare(sql).all(...values);
  }

  close() {
    this.#database?.close();
    this.#database = null;
  }
}
