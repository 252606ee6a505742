// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { randomUUID } from "node:crypto";
import {
  askedIn,
  cleanTurn,
  estimateAll,
  mergePending,
  plain,
  replyOf,
  runTurn,
  saidAt,
  storedUnhanded,
  trimTurns,
  turnsOf,
  turnSuffix,
  UNHANDED,
} from "./history.js";
import { parseSessionKey } from "./keys.js";
import { Busy, ConversationLock } from "./lock.js";
import { RedisAway } from "./outage.js";
import { idempotencyOf } from "./request.js";

export const ENGINE_ID = "shared-state";
const LAST_COMPACTION = 3;

const newOwner = (runtime) => `${runtime.config.replica}/${randomUUID()}`;

/** What stores a turn under the key of a request that nobody waits for any more, if there is one that it answers. */
async function idempotentLate({ asked }, sessionKey, { messages, replica }) {
  const request = await asked.take(sessionKey, { said: saidAt(messages), text: askedIn(messages) });
  return idempotencyOf(request, replica, replyOf(messages));
}

/** A turn that nobody is working on: the gateway ended, or gave up, between its answer and its commit. */
async function keepLeftover(runtime, conv, turn, sessionKey) {
  const { spool, store } = runtime;
  const view = await store.read(conv).catch(() => runtime.recent.get(conv.id));
  const stored = mergePending(view?.turns ?? [], spool.pendingTurns(conv.id));
  if (storedUnhanded(stored, turn)) return { status: "duplicate" };
  const idempotent = await idempotentLate(runtime, sessionKey, turn);
  const owner = newOwner(runtime);
  await runtime.keep({ op: "turn", conv, turn, base: "", epoch: "", owner, leftover: true, ...idempotent });
  return { status: "committed" };
}

/**
 * The context engine of one logical turn: reads the conversation from Redis under its lock, and commits the turn to it.
 * Sessions that are no conversation pass through untouched.
 */
export class TurnEngine {
  info = {
    id: ENGINE_ID,
    name: "Shared state",
    // The gateway then asks again before every model call, which notices a lost lock early, and keeps its own
    // summarising of the local transcript, which nobody reads, off.
    ownsCompaction: true,
    transcriptSemantics: {
      currentTurnFence: "before-current-turn-entry-v1",
      turnAdvancementIdempotency: "atomic-idempotent-v1",
    },
  };

  #runtime;
  #abort = new AbortController();
  #lock = null;
  #reservation = null;
  #base = "";
  #epoch = "";
  #locked = false;
  #localCount;
  #localTurns;
  #lastHistory = [];
  #budget;
  #compactions = 0;
  #session = null;
  #entry;

  /** @param {() => Promise<import("./runtime.js").Runtime>} runtime */
  constructor(runtime) {
    this.#runtime = runtime;
  }

  async bootstrap() {
    return { bootstrapped: true };
  }
  async ingest() {
    return { ingested: true };
  }
  async maintain() {
    return { changed: false, bytesFreed: 0, rewrittenEntries: 0 };
  }

  async assemble({ sessionKey, sessionId, messages, prompt, tokenBudget }) {
    const conv = parseSessionKey(sessionKey);
    if (!conv) return { messages, estimatedTokens: estimateAll(messages) };
    const runtime = await this.#runtime();
    const first = this.#localCount === undefined;
    if (first) {
      this.#localCount = messages.length;
      this.#session = { sessionKey, sessionId };
      this.#entry = { commit: (...args) => this.#commit(...args) };
      runtime.active.set(sessionKey, this.#entry);
      this.#adopt(runtime, sessionKey, prompt);
    }
    // Later budgets of a turn do not subtract the system prompt: the smallest is the true one.
    if (tokenBudget > 0) this.#budget = Math.min(this.#budget ?? Infinity, tokenBudget);
    const turns = await this.#turns(runtime, conv, messages);
    const limit = this.#budget === undefined ? undefined : this.#budget * runtime.config.trimRatio;
    const history = trimTurns(turns, limit).flatMap((turn) => turn.messages);
    const suffix = first ? [] : turnSuffix(messages, this.#localCount, this.#lastHistory);
    this.#lastHistory = history;
    const all = [...history, ...suffix];
    return { messages: all, estimatedTokens: estimateAll(all) };
  }

  /**
   * Stores a turn. Never throws and never drops: what Redis does not take is kept on this host.
   *
   * The gateway may hand any engine the turn of any session (it drains its outbox with whatever engine is there), also
   * while that turn's own engine is storing it. So a turn goes to the engine that assembled it, and is stored once.
   */
  async commitTurn({ advancementKey, messages, sessionKey }) {
    const conv = parseSessionKey(sessionKey);
    const kept = cleanTurn(messages);
    if (!conv || !kept.length) return { status: "committed" };
    const runtime = await this.#runtime();
    const known = runtime.commits.get(advancementKey);
    if (known) {
      await known;
      return { status: "duplicate" };
    }
    const turn = { id: advancementKey, replica: runtime.config.replica, at: Date.now(), messages: kept };
    const own = runtime.active.get(sessionKey);
    const work = own ? own.commit(runtime, conv, turn) : keepLeftover(runtime, conv, turn, sessionKey);
    runtime.commits.set(advancementKey, work);
    return work;
  }

  async #commit(runtime, conv, turn) {
    const { log } = runtime;
    const { sessionKey } = this.#session;
    this.#endSession(runtime);
    void runtime.inbound.committed(sessionKey);
    const record = {
      op: "turn",
      conv,
      turn,
      base: this.#base,
      epoch: this.#epoch,
      owner: this.#lock?.owner ?? newOwner(runtime),
      ...(this.#reservation
        ? this.#reservation.idempotent(replyOf(turn.messages))
        : await idempotentLate(runtime, sessionKey, turn)),
    };
    try {
      if (!this.#locked || runtime.spool.blocks(conv.id)) return await this.#keep(runtime, record);
      const { status, seq, confirmed } = await runtime.store.commit(record, { mode: "next" });
      if (status === "fenced") return await this.#overtaken(runtime, record);
      this.#report(status);
      this.#lock.forget();
      if (status === "answered") {
        runtime.metrics.add("turns_answered");
        log.warn(`A turn of ${conv.id} was not appended: its idempotency key was answered by another replica`);
      }
      if (status !== "answered") runtime.remember(conv, { ...turn, seq });
      if (!confirmed && status !== "answered") {
        runtime.metrics.add("turns_unconfirmed");
        await runtime.keep({ ...record, op: "confirm" });
      }
      return { status: status === "duplicate" ? "duplicate" : "committed" };
    } catch (error) {
      if (!(error instanceof RedisAway)) log.error(`A turn of ${conv.id} was refused by Redis: ${error.message}`);
      return this.#keep(runtime, record);
    }
  }

  /** Drops the older half of what was shown, really: the provider said that it does not fit. */
  async compact({ sessionKey, currentTokenCount }) {
    const conv = parseSessionKey(sessionKey);
    if (!conv) return { ok: true, compacted: false, reason: "this session is not a shared conversation" };
    const runtime = await this.#runtime();
    const turns =
      this.#lock?.view?.turns ??
      (await runtime.store.read(conv).then(
        (view) => view.turns,
        () => [],
      ));
    const shown = estimateAll(this.#lastHistory) || estimateAll(turns.flatMap(({ messages }) => messages));
    if (!shown) return { ok: true, compacted: false, reason: "there is no history to drop" };
    this.#compactions += 1;
    const target = this.#compactions >= LAST_COMPACTION ? 0 : Math.floor(shown / 2);
    const keep = trimTurns(turns, target);
    this.#budget = target / runtime.config.trimRatio;
    runtime.metrics.add("compactions");
    try {
      await runtime.store.compact(conv, keep.length);
      runtime.recent.delete(conv.id);
      if (this.#lock?.view) this.#lock.view.turns = turns.slice(turns.length - keep.length);
    } catch (error) {
      if (!(error instanceof RedisAway)) throw error;
    }
    return {
      ok: true,
      compacted: true,
      result: {
        summary: "Older turns of this conversation were dropped.",
        tokensBefore: currentTokenCount ?? shown,
        tokensAfter: estimateAll(keep.flatMap(({ messages }) => messages)),
        firstKeptEntryId: "",
      },
    };
  }

  async dispose() {
    this.#abort.abort();
    try {
      await this.#end();
    } finally {
      await this.#lock?.release();
    }
  }

  /** The end of a turn that was not committed: answered all the same, or given up. */
  async #end() {
    if (!this.#session) return;
    const { sessionKey, sessionId } = this.#session;
    const runtime = await this.#runtime();
    const messages = cleanTurn(runTurn(this.#entry.ended ?? [], this.#lastHistory));
    if (messages.length) {
      // The gateway's database was locked or full: the answer is on its way to the user, so the turn must not be lost.
      const conv = parseSessionKey(sessionKey);
      runtime.metrics.add("turns_unhanded");
      runtime.log.warn(`A turn of ${conv.id} was answered, but the gateway did not hand it over; it is stored all the same`);
      const { replica } = runtime.config;
      await this.#commit(runtime, conv, { id: UNHANDED + randomUUID(), replica, at: Date.now(), messages });
      return;
    }
    this.#endSession(runtime);
    runtime.metrics.add("turns_given_up");
    void runtime.inbound.givenUp(sessionKey);
    await runtime.transcript.closeGivenUp(sessionKey, sessionId);
  }

  #endSession(runtime) {
    const { sessionKey } = this.#session;
    if (runtime.active.get(sessionKey) === this.#entry) runtime.active.delete(sessionKey);
    this.#session = null;
  }

  /** Takes over what POST /api/v1/message has prepared for this session: its lock, and where it awaits the outcome. */
  #adopt(runtime, sessionKey, prompt) {
    const reservation = runtime.reservations.get(sessionKey);
    if (!reservation) return;
    runtime.reservations.delete(sessionKey);
    this.#lock = reservation.lock;
    reservation.engine = true;
    // Another client's turn may have slipped in front of it: that one may use the lock, but is not its outcome.
    if (!plain(prompt).includes(plain(reservation.message))) return;
    reservation.adopted = true;
    this.#reservation = reservation;
  }

  /** The conversation's turns: from Redis under the lock, else what this replica knows itself. */
  async #turns(runtime, conv, messages) {
    const { config, log, metrics, spool, store } = runtime;
    const signal = this.#abort.signal;
    try {
      if (!this.#lock?.view) await runtime.flush(conv);
      this.#lock ??= new ConversationLock(store, config, conv);
      const view = await this.#lock.acquire({ waitMs: config.lockWaitMs, signal });
      this.#locked = true;
      return this.#use(runtime, conv, view);
    } catch (error) {
      signal.throwIfAborted();
      this.#locked = false;
      if (error instanceof Busy) {
        metrics.add("lock_timeouts");
        log.warn(
          `${error.message}: after ${config.lockWaitMs} ms a turn goes on without its lock and will be appended late`,
        );
        const view = await store.read(conv).catch(() => null);
        if (view) return this.#use(runtime, conv, view);
      } else if (!(error instanceof RedisAway)) {
        log.error(`Conversation ${conv.id} cannot be read: ${error.message}`);
      }
    }
    metrics.add("turns_degraded");
    const known = runtime.recent.get(conv.id);
    if (known) return this.#use(runtime, conv, known);
    this.#base = "";
    this.#epoch = "";
    // Kept turns are in the local transcript too, unless this replica lost its state.
    this.#localTurns ??= turnsOf(messages.slice(0, this.#localCount));
    return this.#localTurns.length ? this.#localTurns : spool.pendingTurns(conv.id);
  }

  #use(runtime, conv, view) {
    const pending = runtime.spool.pendingTurns(conv.id);
    const turns = mergePending(view.turns, pending);
    if (view.turns !== runtime.recent.get(conv.id)?.turns) runtime.recent.set(conv.id, view);
    this.#base = view.seq + turns.length - view.turns.length;
    this.#epoch = view.epoch;
    return turns;
  }

  /** Somebody else took the conversation while this turn was frozen. */
  async #overtaken(runtime, record) {
    runtime.metrics.add("turns_fenced");
    // It may still be ours: a failover can lose the turn before this one.
    await this.#lock.release();
    if (this.#reservation) {
      this.#report("refused");
      return { status: "committed" };
    }
    if (record.idempotency) {
      runtime.log.info(`A turn of ${record.conv.id} whose client is gone was overtaken and is not appended`);
      return { status: "committed" };
    }
    runtime.log.warn(`A turn of ${record.conv.id} lost its lock and is appended after what came between`);
    return this.#keep(runtime, record);
  }

  async #keep(runtime, record) {
    if (this.#locked && !runtime.link.away) await this.#lock.release();
    this.#lock?.forget();
    this.#report((await runtime.keep(record)) ? "kept" : "lost");
    return { status: "committed" };
  }

  #report(outcome) {
    if (this.#reservation) this.#reservation.outcome = outcome;
  }
}
