// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import path from "node:path";
import { DatabaseSync } from "node:sqlite";
import { RedisAway } from "./outage.js";
import { Recent } from "./recent.js";

const LOOK_MS = 500;
const REMEMBERED = 2000;
// Rows of the last seconds are read again: an older one may have been committed later.
const OVERLAP_MS = 5000;
// The gateway's own queue of what providers have delivered (2026.9.5, 2026.9.6).
const SETTLED = `SELECT channel_id AS channel, account_id AS account, event_id AS event, status, updated_at AS at
  FROM channel_ingress_events WHERE status IN ('completed', 'failed') AND updated_at >= ? ORDER BY updated_at LIMIT 1000`;

/** Telegram's update ids are stored with zeros in front. */
const eventOf = (id) => (/^\d+$/.test(id) ? id.replace(/^0+(?=\d)/, "") : id);

/**
 * Tells the ingress which of a provider's events this gateway is through with. Many begin no turn (a stranger's message, words
 * in a group that are not for the bot), and so leave no claim: without this the next message of the conversation would wait
 * for as long as a busy gateway may take to begin one.
 */
export class Arrivals {
  #file;
  #store;
  #log;
  #database = null;
  #timer = null;
  #told = new Recent(REMEMBERED);
  #since;

  /** @param {{stateDir: string|undefined, store: object, log: object}} options stateDir: the gateway's; without it nothing is told */
  constructor({ stateDir, store, log }) {
    this.#file = stateDir && path.join(stateDir, "state", "openclaw.sqlite");
    this.#store = store;
    this.#log = log;
  }

  start() {
    if (!this.#file || this.#timer) return;
    this.#since = Date.now();
    this.#timer = setInterval(() => void this.look(), LOOK_MS);
    this.#timer.unref();
  }

  stop() {
    clearInterval(this.#timer);
    this.#timer = null;
    this.#database?.close();
    this.#database = null;
  }

  /** Tells what has been settled since the last look. */
  async look() {
    let rows;
    try {
      this.#database ??= new DatabaseSync(this.#file, { readOnly: true });
      rows = this.#database.prepare(SETTLED).all(this.#since - OVERLAP_MS);
    } catch (error) {
      // A release that keeps its queue otherwise: the ingress waits as long as it may take.
      this.stop();
      this.#log.warn(`What begins no turn is not told to the ingress: ${error.message}`);
      return;
    }
    const news = rows
      .map(({ channel, account, event, status, at }) => ({ name: `${channel}/${account}/${eventOf(event)}`, status, at }))
      .filter(({ name, at }) => this.#told.get(name) !== at);
    if (!news.length) return;
    try {
      await this.#store.tellArrivals(news);
    } catch (error) {
      if (!(error instanceof RedisAway)) this.#log.error(`What the gateway is through with could not be told: ${error.message}`);
      return; // at the next look
    }
    for (const { name, at } of news) {
      this.#told.set(name, at);
      this.#since = Math.max(this.#since, at);
    }
  }
}
