// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { Claim } from "./claim.js";
import { postJson, readBody, sendError, sendJson } from "./http.js";
import { sessionKeyFor } from "./keys.js";
import { Busy, ConversationLock } from "./lock.js";
import { RedisAway } from "./outage.js";
import { FORWARDED } from "./peers.js";
import {
  answerBody,
  doneAnswer,
  HttpError,
  idempotencyOf,
  outcomeUnknown,
  parseRequest,
  turnError,
} from "./request.js";

const ATTEMPTS = 3;
const PAUSE_MS = 300;

/**
 * POST /api/v1/message: one turn of one conversation, once per idempotency key, on whatever replica.
 *
 * The turn runs through this gateway's own /v1/chat/completions, so that it is admitted, drained and cut off (client
 * gone) like any other; its lock is taken before, so that a busy conversation is a 409 and not a guess.
 */
export async function handleMessage(runtime, req, res) {
  if (req.method !== "POST") {
    return sendJson(res, 405, new HttpError(405, "method_not_allowed", "Use POST.").body, { allow: "POST" });
  }
  const gone = new AbortController();
  res.once("close", () => {
    if (!res.writableFinished) gone.abort();
  });
  try {
    const request = parseRequest(await readBody(req, runtime.config.messageMaxBytes), req.headers["idempotency-key"]);
    runtime.metrics.add("messages");
    const authorization =
      req.headers.authorization ?? (runtime.config.gatewayToken ? `Bearer ${runtime.config.gatewayToken}` : undefined);
    const turn = new MessageTurn(runtime, request, gone.signal, authorization);
    const { body, replayed } = await answerTurn(turn, { forwarded: FORWARDED in req.headers });
    return sendJson(res, 200, body, replayed ? { "idempotency-replayed": "true" } : {});
  } catch (error) {
    if (gone.signal.aborted) return true;
    if (!(error instanceof HttpError)) runtime.log.error(`POST /api/v1/message failed: ${error.stack}`);
    runtime.metrics.add(`messages_${error.status ?? 500}`);
    return sendError(res, error);
  }
}

/**
 * Answers a request by Redis; while it is away, through the replica that knows the conversation best.
 * @param {{forwarded: boolean}} options forwarded: another replica has chosen this one
 * @returns {Promise<{body: object, replayed: boolean}>}
 */
async function answerTurn(turn, { forwarded }) {
  const { runtime, request, conv, signal } = turn;
  try {
    await runtime.peers.settled(conv, signal);
    return await once(turn);
  } catch (error) {
    // Thrown before anything was begun.
    if (!(error instanceof RedisAway)) throw error;
  }
  const answer = forwarded ? null : await runtime.peers.answer(conv, request, signal);
  return answer ?? onceHere(turn);
}

/** Runs a request once per idempotency key. @throws {RedisAway} before it has begun */
async function once(turn) {
  const { runtime, request, signal } = turn;
  if (!request.key) return { body: await turn.run(), replayed: false };
  const { config, store } = runtime;
  const key = store.idempotencyKey(turn.conv, request.key);
  const claim = new Claim(store, key, turn.owner, request.fingerprint);
  const keepMs = (config.turnTimeoutSeconds + 60) * 1000;
  const taken = await claim.take({ waitMs: config.routeWaitMs, signal, keepMs });
  if (taken) return { body: answerOf(taken, request), replayed: true };
  try {
    const answer = await remembered(runtime, key, () => turn.run().then((body) => doneAnswer(request, body)));
    await claim.settle(answer, config.idempotencyTtlSeconds);
    return { body: answer.body, replayed: false };
  } catch (error) {
    if (!(error instanceof Answered)) {
      await claim.settle(null);
      throw error;
    }
    // While this replica was frozen, another one took the claim over and answered.
    const present = await claim.take({ waitMs: config.routeWaitMs, signal, keepMs: 0 }).catch((away) => {
      if (!(away instanceof RedisAway)) throw away;
    });
    if (present) return { body: answerOf(present, request), replayed: true };
    await claim.settle(null);
    throw new HttpError(409, "request_in_progress", "A request with this key was answered meanwhile.", {
      retryAfter: 1,
    });
  }
}

/** The same within this replica, while Redis is away. */
async function onceHere(turn) {
  const { runtime, request, conv } = turn;
  const run = () => turn.run({ alone: true });
  if (!request.key) return { body: await run(), replayed: false };
  const key = runtime.store.idempotencyKey(conv, request.key);
  for (;;) {
    const present = runtime.answerTo(conv, request.key) ?? runtime.inflight.get(key);
    if (!present) break;
    // When that one fails, this one is its second chance.
    const answer = await Promise.resolve(present).catch(() => null);
    if (answer) return { body: answerOf(answer, request), replayed: true };
  }
  const { body } = await remembered(runtime, key, () => run().then((answer) => doneAnswer(request, answer)));
  return { body, replayed: false };
}

/** Does work whose result this replica can repeat without Redis, also while it is being done. */
async function remembered({ answers, inflight }, key, work) {
  const result = work();
  inflight.set(key, result);
  try {
    const answer = await result;
    answers.set(key, answer);
    return answer;
  } finally {
    if (inflight.get(key) === result) inflight.delete(key);
  }
}

/** @throws {HttpError} when what is stored under a key is not the answer to this request */
function answerOf(present, request) {
  if (present.fingerprint !== request.fingerprint) {
    throw new HttpError(422, "idempotency_key_reused", "This key was used for another message.");
  }
  if (present.state === "done") return present.body;
  throw new HttpError(409, "request_in_progress", "A request with this key is still being answered.", {
    retryAfter: 2,
  });
}

/** The request's idempotency key was answered by another turn. */
class Answered extends Error {}

/** One request's way to an answer; more than one turn when the conversation was taken over meanwhile. */
class MessageTurn {
  #admitted = false;

  constructor(runtime, request, signal, authorization) {
    const { channel, user } = request;
    this.runtime = runtime;
    this.request = request;
    this.signal = signal;
    this.authorization = authorization;
    this.conv = { channel, user, id: `${channel}:${user}` };
    this.sessionKey = sessionKeyFor(channel, user);
    this.owner = `${runtime.config.replica}/${randomUUID()}`;
  }

  /**
   * @param {{alone?: boolean}} [options] alone: without Redis, after this replica's other turns of the conversation
   * @returns {Promise<object>} the response body
   * @throws {RedisAway} before it has begun, unless alone
   */
  async run({ alone = false } = {}) {
    // Once for a turn that goes on without Redis.
    const waitMs = this.#admitted ? 0 : await this.runtime.limiter.take(this.conv);
    this.#admitted = true;
    if (waitMs > 0) {
      throw new HttpError(429, "rate_limited", "Too many requests.", { retryAfter: Math.ceil(waitMs / 1000) });
    }
    for (let attempt = 1; attempt <= ATTEMPTS; attempt += 1) {
      const { outcome, body } = await this.#attempt(alone);
      if (outcome === "answered") throw new Answered();
      if (body && outcome !== "refused") return body;
      this.runtime.metrics.add("messages_retried");
      await sleep(PAUSE_MS * attempt, undefined, { signal: this.signal });
    }
    throw new HttpError(503, "turn_not_started", "The turn could not be run now; it has left no trace.", {
      retryAfter: 1,
    });
  }

  /**
   * One turn under one lock.
   * @returns {Promise<{outcome: string, body?: object}>} without a body: it has left no trace and may be tried again
   */
  async #attempt(alone) {
    const lock = new ConversationLock(this.runtime.store, this.runtime.config, this.conv);
    if (!alone) await this.#take(lock);
    return this.runtime.runTurn(this.conv, () => this.#runUnder(lock), { alone });
  }

  async #runUnder(lock) {
    const { config, reservations } = this.runtime;
    const reservation = {
      lock,
      message: this.request.message,
      adopted: false,
      outcome: undefined,
      idempotent: (reply) => idempotencyOf(this.request, config.replica, reply),
    };
    reservations.set(this.sessionKey, reservation);
    const noted = await this.runtime.asked.begin(this.sessionKey, this.request);
    const timeout = AbortSignal.timeout(config.turnTimeoutSeconds * 1000);
    // Whether the gateway has said how the turn ended. Else it may still end it, and store it.
    let ended = false;
    try {
      const { status, body } = await postJson(new URL("/v1/chat/completions", config.gatewayUrl), {
        headers: {
          "x-openclaw-session-key": this.sessionKey,
          ...(this.authorization && { authorization: this.authorization }),
        },
        body: { model: "openclaw/default", messages: [{ role: "user", content: this.request.message }] },
        signal: AbortSignal.any([this.signal, timeout]),
      });
      ended = status !== 200 || reservation.outcome !== undefined;
      const reply = body?.choices?.[0]?.message?.content;
      // A gateway that is busy with its own start or end refuses turns before they begin.
      if (status === 500 && !reservation.adopted) return { outcome: "refused" };
      if (status !== 200 || typeof reply !== "string") {
        // Begun and not handed over for storing: the run itself failed.
        throw turnError(status, body?.error, reservation.adopted && reservation.outcome === undefined);
      }
      if (reservation.begun && !reservation.engine) {
        // The gateway could not ask for the history (its database was locked), so the answer is not one to this conversation.
        this.runtime.metrics.add("turns_without_history");
        return { outcome: "refused" };
      }
      if (reservation.outcome === undefined && reservation.adopted) {
        // Not stored, and nobody knows whether it will be: no answer that could be relied on.
        this.runtime.metrics.add("turns_unrecorded");
        this.runtime.log.error(
          `A turn of ${this.conv.id} was answered, but the gateway did not hand it over for storing`,
        );
        throw outcomeUnknown("The turn was answered, but not stored.");
      }
      return { outcome: reservation.outcome, body: answerBody(this.request, config.replica, reply) };
    } catch (error) {
      if (error instanceof HttpError || this.signal.aborted) throw error;
      if (timeout.aborted)
        throw new HttpError(504, "turn_timeout", `The turn took more than ${config.turnTimeoutSeconds} s.`);
      this.runtime.log.error(`This gateway cannot be reached at ${config.gatewayUrl}: ${error.message}`);
      if (error.connected) throw outcomeUnknown("The gateway ended the turn's connection.");
      throw new HttpError(503, "gateway_unavailable", "This gateway takes no new turns now.", { retryAfter: 1 });
    } finally {
      if (reservations.get(this.sessionKey) === reservation) reservations.delete(this.sessionKey);
      if (ended) await this.runtime.asked.end(noted);
      else this.runtime.asked.giveUp(noted);
      await lock.release();
    }
  }

  /** Takes the conversation's lock. @throws {RedisAway|HttpError} */
  async #take(lock) {
    const { config, metrics } = this.runtime;
    try {
      await this.runtime.flush(this.conv);
      const view = await lock.acquire({ waitMs: config.routeWaitMs, signal: this.signal });
      // Should Redis go away before the gateway asks for the history.
      this.runtime.recent.set(this.conv.id, view);
    } catch (error) {
      if (error instanceof Busy) {
        metrics.add("lock_timeouts");
        throw new HttpError(409, "conversation_busy", "Another turn of this conversation is still running.", {
          retryAfter: 2,
        });
      }
      throw error;
    }
  }
}
