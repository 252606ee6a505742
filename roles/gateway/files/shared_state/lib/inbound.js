// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { randomUUID } from "node:crypto";
import { Claim } from "./claim.js";
import { RedisAway } from "./outage.js";
import { Recent } from "./recent.js";

const REMEMBERED = 1000;
const SETTLE_TRIES_MS = 60000;
// A dispatch that ended without running its message, which may so be given to somebody else.
const NOT_RUN = new Set(["reply_operation_aborted", "reply-operation-active"]);

/**
 * Messages of channels that this gateway answers. Each is claimed over all replicas, so that one delivered again, here or
 * elsewhere, is answered once.
 *
 * A claim is "running" under a lease; "committed" once its turn is in Redis: should this gateway die now, nobody runs the turn
 * again; "done" when the gateway is through with the message, its answer sent; "unsent" when the provider did not take that.
 * Only then may the conversation's next message come: one that comes into the tail of a turn is merged into it, or told that
 * there is no answer (seen in 2026.9.6).
 */
export class Inbound {
  #store;
  #config;
  #metrics;
  #entries = new Map(); // session key -> set of {claim, key, messageId, committed, lost, tried, sent}
  #answers = new Recent(REMEMBERED);
  #unsubscribe = null;

  constructor({ store, config, metrics }) {
    this.#store = store;
    this.#config = config;
    this.#metrics = metrics;
  }

  /**
   * From now on the gateway says when it is through with a message. Without that a commit is the end.
   * @param {{onInternalDiagnosticEvent: Function, areDiagnosticsEnabledForProcess: () => boolean}|null} diagnostics of the gateway; null: it has none
   */
  start(diagnostics) {
    if (!diagnostics?.areDiagnosticsEnabledForProcess()) return;
    this.#unsubscribe = diagnostics.onInternalDiagnosticEvent((event) => void this.processed(event), { include: ["message.processed"] });
  }

  /** Nothing is heard any more: of what is committed, that was the end. */
  stop() {
    this.#unsubscribe?.();
    this.#unsubscribe = null;
    for (const [sessionKey, entries] of this.#entries)
      for (const entry of [...entries]) if (entry.committed) void this.#settle(sessionKey, entry, true);
  }

  /** A message is about to be dispatched. @returns {Promise<{handled: true}|undefined>} handled: it is, or was, somebody else's */
  async begin(event, ctx) {
    const messageId = event.messageId ?? ctx.messageId;
    if (!messageId) return undefined;
    const sessionKey = event.sessionKey ?? ctx.sessionKey ?? "";
    const key = this.#store.dedupeKey([
      ctx.channelId ?? event.channel,
      ctx.accountId,
      ctx.conversationId ?? ctx.senderId ?? event.senderId ?? sessionKey,
      messageId,
    ]);
    const claim = new Claim(this.#store, key, `${this.#config.replica}/${randomUUID()}`);
    const keepMs = (this.#config.turnTimeoutSeconds + 60) * 1000;
    try {
      // The one who has it may die: then its lease ends and this delivery is the message's second chance.
      const present = await claim.take({ waitMs: keepMs, keepMs });
      if (present) {
        this.#metrics.add("webhooks_duplicate");
        return { handled: true };
      }
    } catch (error) {
      if (!(error instanceof RedisAway)) throw error;
      if (this.#answers.get(key)) {
        this.#metrics.add("webhooks_duplicate");
        return { handled: true };
      }
    }
    this.#answers.set(key, true);
    const entry = { claim, key, messageId: String(messageId), committed: false, lost: false, tried: false, sent: false };
    if (!this.#entries.has(sessionKey)) this.#entries.set(sessionKey, new Set());
    this.#entries.get(sessionKey).add(entry);
    // A message of which nothing is heard any more is settled all the same.
    setTimeout(() => void this.#settle(sessionKey, entry, true), keepMs).unref();
    return undefined;
  }

  /**
   * Are a session's messages somebody else's by now? A gateway that stood still could not renew its claims, and another one
   * has answered meanwhile, or will.
   */
  async lost(sessionKey) {
    const entries = this.#of(sessionKey);
    for (const entry of entries) if (!entry.lost && !entry.committed) entry.lost = await entry.claim.lost();
    const lost = entries.length > 0 && entries.every((entry) => entry.lost);
    if (lost) this.#metrics.add("webhooks_lost");
    return lost;
  }

  /** Something is about to be sent to a session's chat. */
  sending(sessionKey) {
    for (const entry of this.#of(sessionKey)) entry.tried = true;
  }

  /** The provider has taken it. Of what it did not take the gateway says nothing. */
  sent(sessionKey) {
    for (const entry of this.#of(sessionKey)) entry.sent = true;
  }

  /** A session's turn has succeeded, or is stored: it is not run again. */
  async committed(sessionKey) {
    const entries = this.#of(sessionKey).filter((entry) => !entry.committed && !entry.lost);
    for (const entry of entries) entry.committed = true;
    if (this.#unsubscribe)
      await Promise.all(entries.map(async (entry) => (entry.lost = !(await this.#write(entry.claim, "committed")))));
    else await Promise.all(entries.map((entry) => this.#settle(sessionKey, entry, true)));
  }

  /** A session's turn came to nothing. What its user was told is known only when the gateway is through with the message. */
  async givenUp(sessionKey) {
    if (this.#unsubscribe) return;
    await Promise.all(this.#of(sessionKey).map((entry) => this.#settle(sessionKey, entry, false)));
  }

  /** The gateway is through with a message: its event "message.processed". */
  async processed({ sessionKey, messageId, outcome, reason }) {
    for (const entry of this.#of(sessionKey).filter((one) => one.messageId === String(messageId))) {
      // What failed and told its user so is not tried again behind their back.
      const told = outcome === "error" ? entry.sent : !NOT_RUN.has(reason);
      const unsent = entry.committed && entry.tried && !entry.sent;
      await this.#settle(sessionKey, entry, entry.committed || told, unsent ? "unsent" : "done");
    }
  }

  #of(sessionKey) {
    return [...(this.#entries.get(sessionKey) ?? [])];
  }

  /** Ends a claim: answered for good, or given back for another delivery. */
  async #settle(sessionKey, entry, answered, state = "done") {
    const entries = this.#entries.get(sessionKey);
    if (!entries?.delete(entry)) return;
    if (!entries.size) this.#entries.delete(sessionKey);
    if (!answered) this.#answers.delete(entry.key);
    if (entry.lost) entry.claim.abandon();
    else await this.#write(entry.claim, answered ? state : null);
  }

  #write(claim, state) {
    // One that is not stored would be run again, by somebody who cannot know better.
    return claim.settle(state && { state, owner: claim.owner, fingerprint: "" }, this.#config.dedupeTtlSeconds, { triesMs: SETTLE_TRIES_MS });
  }
}
