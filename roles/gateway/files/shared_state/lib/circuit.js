// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

/**
 * What is known of one provider.
 * @typedef {{open: boolean, failures: number, until: number, since: number}} Circuit failures: in a row;
 *   until: when an open circuit is tried again (ms); since: when it opened (ms)
 */

/** @type {Circuit} */
export const CLOSED = Object.freeze({ open: false, failures: 0, until: 0, since: 0 });

/**
 * A circuit after one more failure. A failed trial keeps it open for another period.
 * @param {Circuit} circuit
 * @param {number} now ms
 * @param {{failures: number, openMs: number}} limits
 * @returns {Circuit}
 */
export function afterFailure(circuit, now, { failures, openMs }) {
  const count = circuit.failures + 1;
  if (!circuit.open && count < failures) return { ...CLOSED, failures: count };
  return { open: true, failures: count, until: now + openMs, since: circuit.open ? circuit.since : now };
}

/** Is it time to try whether the provider answers again? */
export const isDue = (circuit, now) => circuit.open && now >= circuit.until;

/**
 * Which provider takes a call that is meant for `index`: the first from there on whose circuit is closed and that this
 * turn has not asked before. When there is none, the breaker steps aside: `index` itself, or, when the turn has asked
 * that one already in another's place, the first that it has not asked.
 * @param {{id: string}[]} chain providers in order of preference
 * @param {number} index
 * @param {(id: string) => boolean} isOpen
 * @param {(id: string) => boolean} [isAsked]
 * @returns {number} index of the provider
 */
export function route(chain, index, isOpen, isAsked = () => false) {
  const next = chain.findIndex(({ id }, position) => position >= index && !isOpen(id) && !isAsked(id));
  if (next !== -1) return next;
  if (!isAsked(chain[index].id)) return index;
  const left = chain.findIndex(({ id }) => !isAsked(id));
  return left === -1 ? index : left;
}

// A refused key or an empty account does not heal by trying again, and OpenClaw sets such a provider aside by itself.
const CERTAIN = new Set(["401", "402", "403"]);

/** How many failures in a row open a circuit, this one being the latest. */
export const enough = (reason, failures) => (CERTAIN.has(reason) ? 1 : failures);

// A request that this provider refuses may be one that every provider refuses: it says nothing of its health.
const REQUEST_AT_FAULT = new Set([400, 405, 409, 413, 414, 415, 422]);

/** @returns {boolean} is a provider that answers with this status alive, whatever it thinks of the request? */
export const isAlive = (status) => status < 400 || REQUEST_AT_FAULT.has(status);

/**
 * Why a model call failed, in one word for the journal.
 * @param {string} message of the error
 * @param {string} [kind] the gateway's own word, when it has one
 * @returns {string|null} null: not the provider's fault
 */
export function failureReason(message, kind) {
  if (kind === "aborted" || /\babort/i.test(message)) return null;
  const status = Number(/^\D{0,40}?\b([45]\d\d)\b/.exec(message)?.[1]);
  if (status) return isAlive(status) ? null : String(status);
  if (kind) return kind;
  if (/time[d -]*out/i.test(message)) return "timeout";
  if (/connect|socket|network|fetch failed|ECONN|ENOTFOUND|EAI_AGAIN|terminated/i.test(message)) return "connection";
  return null;
}

/**
 * How one attempt at a provider ended, from what the gateway says at its end.
 * @param {{success: boolean, messages?: object[]}} event agent_end
 * @param {string} [kind] failure kind of the attempt's last model call
 * @returns {{answered: boolean, reason: string|null}} neither: it says nothing about the provider
 */
export function outcomeOf({ success, messages }, kind) {
  const last = messages?.at(-1);
  if (last?.role === "assistant" && last.stopReason === "error") {
    return { answered: false, reason: failureReason(last.errorMessage ?? "", kind) };
  }
  if (kind) return { answered: false, reason: failureReason("", kind) };
  const answered = Boolean(success) && last?.role === "assistant" && last.stopReason !== "aborted";
  return { answered, reason: null };
}
