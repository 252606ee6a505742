// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { createHash } from "node:crypto";
import { readFileSync, statSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { postJson, readBody, sendError, sendJson } from "./http.js";
import { HttpError, outcomeUnknown } from "./request.js";

export const PEER_PATH = "/api/v1/peer";
/** Names the replica that passed a request on: whoever gets it answers it. */
export const FORWARDED = "x-openclaw-ha-forwarded";

/** An address of RFC 5737, which no client has. */
const NO_CLIENT = "192.0.2.1";
const SETTLE_WAIT_MS = 5000;
const POLL_MS = 100;
const QUESTION_MAX_BYTES = 4096;
/** Between two looks at the file of peers. */
const LOOK_MS = 1000;

/**
 * What one replica knows of a conversation.
 * @typedef {{replica: string, redis: boolean, known: number, pending: number, key: boolean}} Knowledge
 *   redis: it reaches Redis; known: turns it could show; pending: those of them that Redis has not got, or that are
 *   still being answered; key: it has answered this idempotency key, or is about to
 */

const weight = (conversation, { replica }) => createHash("sha256").update(`${conversation}\0${replica}`).digest("hex");

/**
 * Who answers a turn while Redis is away from the replica that got it. Whoever sees the same knowledge chooses alike:
 * who has the key; else, of those with turns that Redis has not got, who knows most; else one that reaches Redis; else
 * who knows most. A tie goes to the highest weight (rendezvous hash), which differs by conversation.
 * @param {string} conversation id
 * @param {Knowledge[]} replicas not empty
 * @returns {Knowledge}
 */
export function chooseOwner(conversation, replicas) {
  const having = (test) => {
    const found = replicas.filter(test);
    return found.length ? found : null;
  };
  const connected = having(({ redis }) => redis)?.map((one) => ({ ...one, known: 0 }));
  const candidates = having(({ key }) => key) ?? having(({ pending }) => pending > 0) ?? connected ?? replicas;
  const better = (a, b) => a.known - b.known || (weight(conversation, a) > weight(conversation, b) ? 1 : -1);
  const best = candidates.reduce((a, b) => (better(a, b) >= 0 ? a : b));
  return replicas.find(({ replica }) => replica === best.replica);
}

/**
 * The peers in a file, which is looked at again when it was changed: replicas come and go without a restart of the others.
 * @param {string} path JSON list of {id, url}, this replica among them
 * @param {string} self this replica
 * @returns {() => {id: string, url: string}[]} the others; what cannot be read does not change them
 * @throws {Error} when it cannot be read at first
 */
export function peersIn(path, self, now = Date.now) {
  let peers = [];
  let version;
  let looked = now();
  const look = () => {
    const { mtimeMs, size, ino } = statSync(path);
    const seen = `${mtimeMs} ${size} ${ino}`;
    if (seen === version) return;
    peers = JSON.parse(readFileSync(path, "utf8")).filter(({ id, url }) => id !== self && URL.canParse(url));
    version = seen;
  };
  look();
  return () => {
    if (now() - looked >= LOOK_MS) {
      looked = now();
      try {
        look();
      } catch {
        /* it is being replaced */
      }
    }
    return peers;
  };
}

/** Aborts after a time, but not before what has arrived meanwhile was read: a busy process is late itself. */
function patience(ms) {
  const controller = new AbortController();
  setTimeout(() => setImmediate(() => controller.abort()), ms).unref();
  return controller.signal;
}

/** The other replicas of the datacenter, asked and used while Redis is away, and until all are back. */
export class Peers {
  #config;
  #metrics;
  #know;
  #flush;
  #isUnsettled;

  /**
   * @param {object} options
   * @param {object} options.config settings; `peers` is a list of {id, url}
   * @param {import("./metrics.js").Metrics} options.metrics
   * @param {(conv, key?: string) => Knowledge} options.know what this replica knows
   * @param {(conv) => Promise<void>} options.flush writes this replica's kept turns of a conversation to Redis
   * @param {() => Promise<boolean>} options.isUnsettled may a replica still hold turns that Redis has not got?
   */
  constructor({ config, metrics, know, flush, isUnsettled }) {
    this.#config = config;
    this.#metrics = metrics;
    this.#know = know;
    this.#flush = flush;
    this.#isUnsettled = isUnsettled;
  }

  /** What this replica and all peers that answer in time know. @returns {Promise<Knowledge[]>} */
  async #ask(conv, key) {
    const { peers, peerTimeoutMs } = this.#config;
    const answers = peers.map(async ({ id, url }) => {
      try {
        const { status, body } = await postJson(new URL(PEER_PATH, url), {
          headers: this.#headers(),
          body: { conv, key },
          signal: patience(peerTimeoutMs),
        });
        if (status === 200) return { ...body, replica: id };
      } catch {
        /* dead, frozen or cut off: it is left out */
      }
      this.#metrics.add("peers_silent");
      return null;
    });
    const known = (await Promise.all(answers)).filter(Boolean);
    return [this.#know(conv, key), ...known];
  }

  /**
   * Waits, within a bound, until no replica holds turns of this conversation that Redis has not got. Nothing to do
   * unless there was trouble with Redis a moment ago: replicas notice its return at different moments.
   * @throws {RedisAway}
   */
  async settled(conv, signal) {
    if (!this.#config.peers.length) return;
    const deadline = Date.now() + SETTLE_WAIT_MS;
    while (await this.#isUnsettled()) {
      await this.#flush(conv);
      if ((await this.#ask(conv)).every(({ pending }) => !pending)) return;
      if (Date.now() >= deadline) {
        this.#metrics.add("peers_unsettled");
        return;
      }
      await sleep(POLL_MS, undefined, { signal });
    }
  }

  /**
   * Has a turn answered by the replica that knows its conversation best.
   * @param {import("./keys.js").Conversation} conv
   * @param {import("./request.js").Request} request
   * @param {AbortSignal} signal the client is gone
   * @returns {Promise<{body: object, replayed: boolean}|null>} null: this replica is to answer it itself
   * @throws {HttpError} the other replica's error; 503 when it is not known what became of the turn
   */
  async answer(conv, request, signal) {
    if (!this.#config.peers.length) return null;
    let replicas = await this.#ask(conv, request.key);
    for (;;) {
      const { replica } = chooseOwner(conv.id, replicas);
      if (replica === this.#config.replica) return null;
      const answer = await this.#forward(replica, request, signal);
      if (answer) return answer;
      replicas = replicas.filter((other) => other.replica !== replica);
    }
  }

  /** @returns {Promise<{body: object, replayed: boolean}|null>} null: it has certainly not begun the turn */
  async #forward(replica, { channel, user, message, messageId, key }, signal) {
    const { peers, replica: self, turnTimeoutSeconds, routeWaitMs } = this.#config;
    const timeout = AbortSignal.timeout(turnTimeoutSeconds * 1000 + routeWaitMs);
    let answer;
    try {
      answer = await postJson(new URL("/api/v1/message", peers.find(({ id }) => id === replica).url), {
        headers: { ...this.#headers(), [FORWARDED]: self, ...(key && { "idempotency-key": key }) },
        body: { channel, user_id: user, message, message_id: messageId },
        signal: AbortSignal.any([signal, timeout]),
      });
    } catch (error) {
      if (signal.aborted) throw error;
      if (!error.connected) return null;
    }
    if (answer?.status === 200) {
      this.#metrics.add("messages_forwarded");
      return { body: answer.body, replayed: answer.headers["idempotency-replayed"] === "true" };
    }
    const error = answer?.body?.error;
    if (["turn_not_started", "gateway_unavailable"].includes(error?.code)) return null;
    if (error?.code && answer.status !== 401) {
      const retryAfter = Number(answer.headers["retry-after"]) || undefined;
      throw new HttpError(answer.status, error.code, error.message, { retryAfter });
    }
    throw outcomeUnknown("The replica that was answering this turn was lost.");
  }

  /** POST /api/v1/peer: another replica asks. */
  async handle(req, res) {
    try {
      // Whom a balancer names is a client, in whatever way it wrote the path to get past the balancer.
      if ((req.headers["x-forwarded-for"] ?? NO_CLIENT) !== NO_CLIENT) throw new HttpError(404, "not_found", "There is nothing here.");
      const { conv, key } = JSON.parse(await readBody(req, QUESTION_MAX_BYTES));
      // What is still kept here holds up a turn there.
      void this.#flush(conv);
      return sendJson(res, 200, this.#know(conv, key));
    } catch (error) {
      return sendError(res, error instanceof HttpError ? error : new HttpError(400, "invalid_question", error.message));
    }
  }

  #headers() {
    const { balancerHost, gatewayToken } = this.#config;
    return {
      ...(gatewayToken && { authorization: `Bearer ${gatewayToken}` }),
      // A gateway refuses a trusted proxy's request that names no client, and anybody else's that does.
      ...(balancerHost && { "x-forwarded-for": NO_CLIENT }),
    };
  }
}
