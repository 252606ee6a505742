// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

/**
 * A conversation as every replica knows it.
 * @typedef {{channel: string, user: string, id: string}} Conversation id = "channel:user"
 */

// Sessions that the gateway runs for itself, and one-off requests without a user: nobody continues them elsewhere.
const INTERNAL = new Set([
  "internal-session-effects",
  "subagent",
  "cron",
  "hook",
  "acp",
  "heartbeat",
  "openai",
  "openresponses",
  "temp",
  "boot",
]);
// The gateway may lower-case session keys, so anything but these is written as ~ and two hex digits per byte.
const PLAIN = /^[a-z0-9._@+=-]$/;

const escapeUser = (user) =>
  [...user]
    .map((char) =>
      PLAIN.test(char) ? char : [...Buffer.from(char)].map((byte) => `~${byte.toString(16).padStart(2, "0")}`).join(""),
    )
    .join("");

const unescapeUser = (text) => {
  const bytes = [];
  for (let i = 0; i < text.length; i += 1) {
    const hex = /^~([0-9a-f]{2})/.exec(text.slice(i, i + 3));
    if (hex) {
      bytes.push(parseInt(hex[1], 16));
      i += 2;
    } else bytes.push(...Buffer.from(text[i]));
  }
  return Buffer.from(bytes).toString();
};

const conversation = (channel, user) => ({ channel, user, id: `${channel}:${user}` });

/**
 * The session key under which the gateway runs a conversation that came through POST /api/v1/message.
 * @param {string} channel lower-case channel name
 * @param {string} user any text without control characters
 * @returns {string}
 */
export const sessionKeyFor = (channel, user) => `agent:main:api:${channel}:${escapeUser(user)}`;

/** The agent of a session key. */
export const agentOf = (sessionKey) => /^agent:([^:]+):/.exec(sessionKey)?.[1] ?? "main";

/**
 * The conversation that a gateway session belongs to.
 *
 *   agent:main:api:<channel>:<user>             own route            -> channel, user
 *   agent:main:openai-user:<channel>:<user>     /v1, "user" field    -> channel, user
 *   agent:main:openai-user:<user>               /v1, "user" field    -> openai, user
 *   agent:main:<channel>:direct:<user>          direct message       -> channel, user
 *   agent:main:<channel>:<account>:direct:<user>                     -> channel, account:user
 *   agent:main:<channel>:group:<id>...          group and thread     -> channel, group:id...
 *   agent:<other>:...                           another agent        -> other/channel, user
 *
 * @param {string|undefined} sessionKey
 * @returns {Conversation|null} null: internal or one-off, never shared
 */
export function parseSessionKey(sessionKey) {
  if (!sessionKey) return null;
  const parts = sessionKey.split(":");
  let scope = "";
  if (parts[0] === "agent") {
    if (parts.length < 3) return null;
    if (parts[1] !== "main") scope = `${parts[1]}/`;
    parts.splice(0, 2);
  }
  const [kind, ...rest] = parts;
  if (!kind || INTERNAL.has(kind) || rest.includes("subagent") || rest.includes("heartbeat")) return null;
  if (!rest.length) return conversation(`${scope}${kind}`, kind);
  if (kind === "api" && rest.length >= 2) {
    return conversation(scope + rest[0], unescapeUser(rest.slice(1).join(":")));
  }
  if (kind === "openai-user") {
    return rest.length >= 2
      ? conversation(scope + rest[0], rest.slice(1).join(":"))
      : conversation(`${scope}openai`, rest[0]);
  }
  if (rest[0] === "direct" && rest.length >= 2) return conversation(scope + kind, rest.slice(1).join(":"));
  if (rest[1] === "direct" && rest.length >= 3) {
    return conversation(scope + kind, `${rest[0]}:${rest.slice(2).join(":")}`);
  }
  return conversation(scope + kind, rest.join(":"));
}

/**
 * Names of all Redis keys under one prefix.
 * @param {string} prefix
 */
export const redisKeys = (prefix) => ({
  conversation: (conv) => `${prefix}conv:${conv.id}`,
  session: (conv) => `${prefix}session:${conv.id}`,
  lock: (conv) => `${prefix}lock:${conv.id}`,
  seen: (conv) => `${prefix}seen:${conv.id}`,
  idempotency: (conv, key) => `${prefix}idem:${conv.id}:${key}`,
  dedupe: (parts) => `${prefix}dedupe:${parts.map((part) => encodeURIComponent(part ?? "")).join(":")}`,
  arrival: (name) => `${prefix}inbound:${name}`,
  circuit: (provider) => `${prefix}breaker:${provider}`,
  trial: (provider) => `${prefix}breaker:${provider}:trial`,
  events: () => `${prefix}events`,
  idle: () => `${prefix}idle`,
  bucket: (name) => `${prefix}rate:${name}`,
  metrics: (replica) => `${prefix}metrics:gateway:${replica}`,
  cronJob: (job) => `${prefix}cron:${job}`,
  cronOpen: (job) => `${prefix}cron:${job}:open`,
  cronSlot: (job, slot) => `${prefix}cron:${job}:${slot}`,
});
