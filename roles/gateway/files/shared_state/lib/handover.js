// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { setTimeout as sleep } from "node:timers/promises";

// An owner that wants an account off says so again and again; without a word for so long what was held back is sent.
const LEAVE_MS = 8000;
// After so long an account is stopped whatever is under way.
const FINISH_MS = 20000;
// OpenClaw waits 15 s for a hook.
const HOLD_MS = 9000;
// Of a message that the provider does not take OpenClaw says nothing.
const SEND_MS = 10000;
// Within this time a stop has broken off what it breaks off.
const BREAK_MS = 300;
// What has been taken from a provider, and has not become a turn: a stop in that moment loses it (seen).
const PENDING = `SELECT event_id FROM channel_ingress_events
  WHERE channel_id = ? AND account_id = ? AND status IN ('pending', 'claimed') LIMIT 1`;
// Accounts that were stopped in this process, whichever instance of the plugin did it: OpenClaw does not start them by itself,
// but for its first start of all channels, which forgets what was stopped before it. account -> is it surely stopped still?
// One of which that is not sure (its stop took too long, somebody has started it) is kept: it may need a start all the same.
const STOPPED = (globalThis[Symbol.for("openclaw.ha.stopped-accounts")] ??= new Map());

/**
 * Stops an account that another replica is to get, between two messages.
 *
 * OpenClaw takes over a change of its configuration when the whole gateway has nothing to do, which a busy bot may keep from
 * happening for minutes, and breaks off what it is sending in the moment in which an account is stopped; what comes after
 * that it sends all the same (all seen in 2026.9.6). So when the owner says that an account leaves, here what has been taken
 * is begun first; then what is to be sent waits, what is under way ends, the account is stopped by the gateway's own method,
 * and what waits is sent.
 */
export class Handover {
  #queue;
  #log;
  #now;
  #leaving = new Map(); // account -> {began, held: {over: Promise, end: () => void}|null, timer}
  #underway = new Map(); // account -> [{to, until}]
  #stopping = new Set(); // accounts whose stop is not over

  /** @param {{queue: import("./queue.js").Queue, log: object, now?: () => number}} options */
  constructor({ queue, log, now = Date.now }) {
    this.#queue = queue;
    this.#log = log;
    this.#now = now;
  }

  /**
   * The owner wants an account ("channel/account") off: one step towards that. Asked again until it is stopped.
   * @param {(method: string, params: object) => Promise<object>} dispatch of the gateway
   */
  async leave(account, dispatch) {
    if (!this.#leaving.has(account)) this.#leaving.set(account, { began: this.#now(), held: null });
    const entry = this.#leaving.get(account);
    clearTimeout(entry.timer);
    entry.timer = setTimeout(() => this.#forget(account), LEAVE_MS).unref();
    if (this.isStopped(account)) return;
    const late = this.#now() >= entry.began + FINISH_MS;
    if (!late && !entry.held && this.#pending(account)) return;
    this.#hold(entry);
    if (!late && this.#sending(account)) return;
    if (!late && this.#pending(account)) return this.#goOn(entry);
    await Promise.race([this.#stop(account, dispatch), sleep(BREAK_MS, undefined, { ref: false })]);
    this.#goOn(entry);
  }

  /** The owner has it on here: it goes on, or is started again when the configuration in force has it. */
  async keep(account, enabled, dispatch) {
    this.#forget(account);
    if (!enabled || !STOPPED.has(account)) return;
    const started = await this.#run("channels.start", account, dispatch);
    // While its stop is not over a start is none, and the gateway says why.
    if (started?.outcome?.status === "handed-off") STOPPED.delete(account);
  }

  /** The gateway says that an account runs. One that does so after it was stopped has been started by somebody else, and is stopped again. */
  runs(account) {
    if (STOPPED.has(account) && !this.#stopping.has(account)) STOPPED.set(account, false);
  }

  /** @returns {string[]} accounts that are to leave, and are not stopped */
  busy() {
    return [...this.#leaving.keys()].filter((account) => !this.isStopped(account)).sort();
  }

  /** Was it stopped here, and not started again? The gateway itself does not start it then. */
  isStopped(account) {
    return STOPPED.get(account) === true;
  }

  /** Wait until something may be sent. The rest of what a chat is being sent already does not wait. */
  async pass(account, to) {
    const held = this.#leaving.get(account)?.held;
    if (held && !this.#sendsOf(account).some((one) => one.to === to)) await Promise.race([held.over, sleep(HOLD_MS, undefined, { ref: false })]);
  }

  /** Something is being sent from now on. */
  begin(account, to) {
    this.#underway.set(account, [...this.#sendsOf(account), { to, until: this.#now() + SEND_MS }]);
  }

  /** The provider has taken it, or it is not sent. */
  end(account, to) {
    const sends = this.#sendsOf(account);
    const index = sends.findIndex((one) => one.to === to);
    if (index >= 0) sends.splice(index, 1);
    if (sends.length) this.#underway.set(account, sends);
    else this.#underway.delete(account);
  }

  stop() {
    for (const account of [...this.#leaving.keys()]) this.#forget(account);
    this.#queue.close();
  }

  async #stop(account, dispatch) {
    STOPPED.set(account, true);
    this.#stopping.add(account);
    const done = await this.#run("channels.stop", account, dispatch);
    this.#stopping.delete(account);
    if (done?.stopped !== true) STOPPED.set(account, false);
  }

  async #run(method, account, dispatch) {
    const [channel, ...rest] = account.split("/");
    try {
      const { ok, payload, error } = await dispatch(method, { channel, accountId: rest.join("/") });
      if (ok !== true) throw new Error(error?.message ?? "the gateway refused");
      return payload ?? {};
    } catch (error) {
      this.#log.warn(`${method} of ${account} failed: ${error.message}`);
      return null;
    }
  }

  #hold(entry) {
    if (entry.held) return;
    const { promise, resolve } = Promise.withResolvers();
    entry.held = { over: promise, end: resolve };
  }

  #goOn(entry) {
    entry.held?.end();
    entry.held = null;
  }

  #forget(account) {
    const entry = this.#leaving.get(account);
    if (!entry) return;
    clearTimeout(entry.timer);
    this.#leaving.delete(account);
    this.#goOn(entry);
  }

  #sending(account) {
    return this.#sendsOf(account).length > 0;
  }

  #sendsOf(account) {
    return (this.#underway.get(account) ?? []).filter((one) => one.until > this.#now());
  }

  #pending(account) {
    const [channel, ...rest] = account.split("/");
    try {
      return this.#queue.all(PENDING, channel, rest.join("/")).length > 0;
    } catch {
      return false; // a release that keeps it otherwise
    }
  }
}
