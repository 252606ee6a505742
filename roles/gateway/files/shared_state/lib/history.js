// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

/**
 * One committed turn, the unit in which history is stored, trimmed and counted.
 * @typedef {{id: string, messages: object[], replica?: string, at?: number, seq?: number, late?: boolean}} Turn
 */

const partsOf = (message) => (Array.isArray(message.content) ? message.content : []);

/** Text of a message, whatever shape its content has. */
export const textOf = (message) =>
  typeof message?.content === "string"
    ? message.content
    : partsOf(message ?? {})
        .filter((part) => part.type === "text")
        .map((part) => part.text ?? "")
        .join("");

/** Estimated tokens of a message: a quarter of its UTF-8 bytes, so that other scripts are not counted short. */
export const estimateTokens = (message) => Math.ceil(Buffer.byteLength(JSON.stringify(message.content ?? "")) / 4) + 8;

/** Estimated tokens of a list of messages. */
export const estimateAll = (messages) => messages.reduce((sum, message) => sum + estimateTokens(message), 0);

/**
 * What is worth keeping of an accepted turn: users, answers, and tool calls that have their result. Aborted attempts,
 * host notes and unpaired tool traffic are left out, because a provider refuses a history with half a tool call.
 * @param {object[]} messages as given to commitTurn
 * @returns {object[]}
 */
export function cleanTurn(messages) {
  const known = messages.filter(({ role }) => ["user", "assistant", "toolResult"].includes(role));
  const results = new Set(known.filter(({ role }) => role === "toolResult").map(({ toolCallId }) => toolCallId));
  const called = new Set();
  const kept = [];
  for (const message of known) {
    if (message.role === "toolResult") {
      if (called.has(message.toolCallId)) kept.push(message);
      continue;
    }
    if (message.role === "user" || !Array.isArray(message.content)) {
      kept.push(message);
      continue;
    }
    const content = message.content.filter((part) => part.type !== "toolCall" || results.has(part.id));
    const empty = !content.some((part) => part.type !== "text" || part.text);
    if (empty) continue;
    content.filter((part) => part.type === "toolCall").forEach((part) => called.add(part.id));
    kept.push(content.length === message.content.length ? message : { ...message, content });
  }
  return kept;
}

/** The last answer's text in a turn; empty when it has none. */
export const replyOf = (messages) => textOf(messages.findLast(({ role }) => role === "assistant"));

/** The first user message's text in a turn. */
export const askedIn = (messages) => textOf(messages.find(({ role }) => role === "user"));

/** Text as far as the gateway keeps it: it trims and folds white space. */
export const plain = (text) => (text ?? "").replace(/\s+/g, " ").trim();

/** When a turn's user spoke, ms; 0 when nobody knows. */
export const saidAt = (messages) => messages.find(({ role }) => role === "user")?.timestamp ?? 0;

/** The same turn without its tool traffic: first user message and last answer. */
const condensed = (turn) => ({
  ...turn,
  messages: [
    turn.messages.find(({ role }) => role === "user"),
    turn.messages.findLast((message) => message.role === "assistant" && textOf(message)),
  ]
    .filter(Boolean)
    .map((message) =>
      message.role === "assistant" && Array.isArray(message.content)
        ? { ...message, content: message.content.filter((part) => part.type !== "toolCall") }
        : message,
    ),
});

/**
 * The newest whole turns that fit. Cutting between turns keeps every tool call with its result. The newest turn alone
 * may be shown without its tool traffic, so that one huge tool result does not erase what was just said.
 * @param {Turn[]} turns oldest first
 * @param {number|undefined} budget tokens; undefined = unlimited
 * @returns {Turn[]}
 */
export function trimTurns(turns, budget) {
  if (budget === undefined) return turns;
  const kept = [];
  let left = budget;
  for (const turn of turns.toReversed()) {
    let fitting = turn;
    if (estimateAll(turn.messages) > left && !kept.length) fitting = condensed(turn);
    const cost = estimateAll(fitting.messages);
    if (cost > left) break;
    kept.push(fitting);
    left -= cost;
  }
  return kept.reverse();
}

/**
 * Local transcript messages as turns, for the time when Redis is away. A user message without an answer (a client hung
 * up, a provider failed) is left out: it was never accepted.
 * @param {object[]} messages
 * @returns {Turn[]}
 */
export function turnsOf(messages) {
  const groups = [];
  for (const message of messages) {
    if (message.role === "user" || !groups.length) groups.push([]);
    groups.at(-1).push(message);
  }
  return groups
    .map((group, index) => ({ id: `local-${index}`, messages: cleanTurn(group) }))
    .filter(({ messages: kept }) => kept.some(({ role }) => role === "assistant"));
}

const same = (a, b) => a && b && a.role === b.role && a.timestamp === b.timestamp;
const startsWith = (messages, prefix) =>
  prefix.length > 0 &&
  messages.length >= prefix.length &&
  same(messages[0], prefix[0]) &&
  same(messages[prefix.length - 1], prefix.at(-1));

/**
 * What the gateway holds beyond history when it assembles again within one turn (a provider timed out, a tool was
 * called): that suffix has to follow the history, or the turn fails; the history must not be in it, or it is doubled.
 * The gateway starts from what was returned before, or from its local transcript.
 * @param {object[]} messages as given to this assemble call
 * @param {number} localCount length of the local transcript at the turn's first assemble call
 * @param {object[]} lastHistory history returned by the previous assemble call, without its suffix
 * @returns {object[]}
 */
export const turnSuffix = (messages, localCount, lastHistory) =>
  messages.slice(startsWith(messages, lastHistory) ? lastHistory.length : localCount);

/**
 * The turn at the end of what a run had before it when it ended.
 * @param {object[]} messages the run's
 * @param {object[]} lastHistory the history it was given
 * @returns {object[]} empty when the run did not answer
 */
export function runTurn(messages, lastHistory) {
  const last = messages.at(-1);
  if (last?.role !== "assistant" || last.stopReason !== "stop" || !textOf(last)) return [];
  const from = startsWith(messages, lastHistory)
    ? lastHistory.length
    : messages.findLastIndex(({ role }) => role === "user");
  const turn = messages.slice(Math.max(from, 0));
  return turn[0].role === "user" ? turn : [];
}

/** Ids of turns that the gateway answered and did not hand over begin with this. */
export const UNHANDED = "unhanded-";

/**
 * Is a turn that the gateway hands over at last among those that were stored without waiting for it?
 * @param {Turn[]} turns
 * @param {Turn} turn
 */
export const storedUnhanded = (turns, turn) =>
  turns.some(
    ({ id, replica, messages }) =>
      id.startsWith(UNHANDED) &&
      replica === turn.replica &&
      replyOf(messages) === replyOf(turn.messages) &&
      plain(askedIn(messages)) === plain(askedIn(turn.messages)),
  );

/**
 * Turns of a conversation followed by those that have not reached Redis yet.
 * @param {Turn[]} turns
 * @param {Turn[]} pending
 * @returns {Turn[]}
 */
export function mergePending(turns, pending) {
  const known = new Set(turns.map(({ id }) => id));
  return [...turns, ...pending.filter(({ id }) => !known.has(id))];
}
