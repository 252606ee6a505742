// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { createHash } from "node:crypto";

const CHANNEL = /^[a-z0-9][a-z0-9_-]{0,31}$/;
const CONTROL = /[\p{Cc}\p{Cs}\u2028\u2029]/u;
const KEY = /^[\x21-\x7e]{1,200}$/;
const FIELDS = ["channel", "user_id", "message", "message_id"];
const TYPES = {
  400: "invalid_request_error",
  409: "conflict_error",
  429: "rate_limit_error",
  502: "provider_error",
  503: "unavailable_error",
};

/** An answer that is an error: becomes {"error": {message, type, code}}. */
export class HttpError extends Error {
  /**
   * @param {number} status
   * @param {string} code stable, for programs
   * @param {string} message one sentence, for people
   * @param {{retryAfter?: number}} [options] seconds
   */
  constructor(status, code, message, { retryAfter } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }

  get body() {
    const type = TYPES[this.status] ?? (this.status < 500 ? TYPES[400] : "server_error");
    return { error: { message: this.message, type, code: this.code } };
  }
}

const invalid = (code, message) => new HttpError(400, code, message);

/**
 * A valid request of POST /api/v1/message.
 * @typedef {{channel: string, user: string, message: string, messageId?: string, key?: string,
 *   fingerprint: string}} Request
 */

/**
 * Checks the body of POST /api/v1/message.
 * @param {string} text the body
 * @param {string|undefined} headerKey the Idempotency-Key header; message_id takes its place when it is absent
 * @returns {Request}
 * @throws {HttpError} 400 naming the field
 */
export function parseRequest(text, headerKey) {
  let body;
  try {
    body = JSON.parse(text);
  } catch {
    throw invalid("invalid_json", "The body is not valid JSON.");
  }
  if (body === null || typeof body !== "object" || Array.isArray(body)) {
    throw invalid("invalid_body", "The body must be a JSON object.");
  }
  const unknown = Object.keys(body).find((name) => !FIELDS.includes(name));
  if (unknown !== undefined) throw invalid("unknown_field", `The field ${JSON.stringify(unknown)} is not known.`);
  for (const name of FIELDS.slice(0, 3)) {
    if (typeof body[name] !== "string") throw invalid(`invalid_${name}`, `The field "${name}" must be a string.`);
  }
  if (!CHANNEL.test(body.channel)) {
    throw invalid(
      "invalid_channel",
      'The field "channel" must be 1 to 32 of a-z, 0-9, "_" and "-", not beginning with a sign.',
    );
  }
  if (!body.user_id || [...body.user_id].length > 128 || CONTROL.test(body.user_id) || /^\s|\s$/.test(body.user_id)) {
    throw invalid(
      "invalid_user_id",
      'The field "user_id" must be 1 to 128 characters, none of control, no space around.',
    );
  }
  if (!body.message.trim() || body.message.includes("\0") || !body.message.isWellFormed()) {
    throw invalid(
      "invalid_message",
      'The field "message" must not be empty and must be valid Unicode text without NUL.',
    );
  }
  if (body.message_id !== undefined && (typeof body.message_id !== "string" || !KEY.test(body.message_id))) {
    throw invalid(
      "invalid_message_id",
      'The field "message_id" must be 1 to 200 printable ASCII characters without spaces.',
    );
  }
  if (headerKey !== undefined && !KEY.test(headerKey)) {
    throw invalid(
      "invalid_idempotency_key",
      "The Idempotency-Key header must be 1 to 200 printable ASCII characters without spaces.",
    );
  }
  const { channel, user_id: user, message, message_id: messageId } = body;
  const fingerprint = createHash("sha256")
    .update(JSON.stringify([channel, user, message]))
    .digest("base64url");
  return { channel, user, message, messageId, key: headerKey ?? messageId, fingerprint };
}

/** The body of a 200. */
export const answerBody = ({ channel, user, messageId }, replica, reply) => ({
  reply,
  channel,
  user_id: user,
  replica,
  ...(messageId !== undefined && { message_id: messageId }),
});

/** What is stored under an idempotency key that has its answer. */
export const doneAnswer = ({ fingerprint }, body) => ({ state: "done", fingerprint, body });

/** What a commit stores together with the turn, so that a retry after a crash gets this very answer. */
export const idempotencyOf = (request, replica, reply) =>
  request?.key
    ? { idempotency: { key: request.key, answer: doneAnswer(request, answerBody(request, replica, reply)) } }
    : {};

/** A turn of which nobody can say whether it was stored: the same key tells, by being sent again. */
export const outcomeUnknown = (message) => new HttpError(503, "outcome_unknown", message, { retryAfter: 1 });

/**
 * What a failed turn means for the client of POST /api/v1/message.
 * @param {number} status of the gateway's own chat endpoint
 * @param {{code?: string}|undefined} error its error object
 * @param {boolean} modelFailed the run had begun and ended without an answer; the gateway then passes on the status of
 *   the last provider, which says nothing about this request or this gateway
 * @returns {HttpError}
 */
export function turnError(status, error, modelFailed) {
  if (modelFailed && error?.code !== "gateway_unavailable") {
    return new HttpError(502, "provider_failed", "No model provider answered.", { retryAfter: 5 });
  }
  if (status === 503) {
    return new HttpError(503, error?.code ?? "gateway_unavailable", "This gateway takes no new turns now.", {
      retryAfter: 1,
    });
  }
  if (status === 429) return new HttpError(429, "rate_limited", "Too many requests.", { retryAfter: 5 });
  if (status === 401 || status === 403)
    return new HttpError(status, "unauthorized", "The gateway refused the credentials.");
  if (status >= 400 && status < 500) return new HttpError(400, "turn_refused", "The gateway refused the turn.");
  return new HttpError(500, "turn_failed", "The turn failed.");
}
