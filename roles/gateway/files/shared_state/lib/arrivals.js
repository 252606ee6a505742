// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { RedisAway } from "./outage.js";
import { Recent } from "./recent.js";

const LOOK_MS = 500;
const REMEMBERED = 2000;
// Rows of the last seconds are read again: an older one may have been committed later.
const OVERLAP_MS = 5000;
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
  #queue;
  #store;
  #log;
  #timer = null;
  #told = new Recent(REMEMBERED);
  #since;

  /** @param {{queue: import("./queue.js").Queue|null, store: object, log: object}} options queue: without it nothing is told */
  constructor({ queue, store, log }) {
    this.#queue = queue;
    this.#store = store;
    this.#log = log;
  }

  start() {
    if (!this.#queue || this.#timer) return;
    this.#since = Date.now();
    this.#timer = setInterval(() => void this.look(), LOOK_MS);
    this.#timer.unref();
  }

  stop() {
    clearInterval(this.#timer);
    this.#timer = null;
    this.#queue?.close();
  }

  /** Tells what has been settled since the last look. */
  async look() {
    let rows;
    try {
      rows = this.#queue.all(SETTLED, this.#since - OVERLAP_MS);
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
