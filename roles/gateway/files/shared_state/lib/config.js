// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { readFileSync } from "node:fs";
import { peersIn } from "./peers.js";

/** Default of every optional setting. Times carry their unit in the name. */
export const DEFAULTS = Object.freeze({
  monitorName: "openclaw",
  keyPrefix: "oc:",
  conversationTtlSeconds: 604800,
  turnTimeoutSeconds: 120,
  ollamaUrl: "",
  gatewayUrl: "http://127.0.0.1:18789",
  // A Sentinel failover takes 3-6 s: the first operations of an outage wait this long for a new primary.
  outageWaitMs: 8000,
  commandTimeoutMs: 1000,
  // Replicas that stand in for each other's memory while Redis is away, and how long one may take to say what it knows:
  // a gateway that begins several turns at once is deaf for some hundred ms.
  peers: Object.freeze([]),
  // A busy peer must be heard: without it a conversation would be continued from what this replica happens to know.
  peerTimeoutMs: 5000,
  balancerHost: false,
  lockLeaseMs: 10000,
  routeWaitMs: 30000,
  // Replicas that must confirm a turn before it counts as safe; 0 where Redis has no replica.
  waitReplicas: 1,
  waitTimeoutMs: 500,
  spoolMaxRecords: 10000,
  spoolMaxBytes: 67108864,
  messageMaxBytes: 65536,
  idempotencyTtlSeconds: 86400,
  dedupeTtlSeconds: 86400,
  // A conversation keeps its newest turns; a model's window is full long before this.
  maxTurns: 1000,
  // Share of the token budget that history may fill.
  trimRatio: 0.8,
  metricsTtlSeconds: 86400,
  // Failures in a row after which turns go to the next provider (0 = never), and seconds until it is tried again.
  breakerFailures: 3,
  breakerOpenSeconds: 30,
  // Providers' events come from an ingress, which wants to know of those that begin no turn.
  webhooks: false,
  // Scheduled jobs of the cluster: every replica has them, and each run is one replica's.
  jobs: Object.freeze([]),
});

/**
 * Settings of this replica: the plugin's configuration over the defaults, with secrets from the environment.
 * @param {object} given `plugins.entries.shared-state.config` of openclaw.json
 * @param {Record<string, string|undefined>} env process environment
 * @returns {object} frozen settings; `peers` is what "peersFile" holds now, where that is given
 * @throws {Error} when a required setting is missing, two jobs have one key, or a file of "tls" or "peersFile" cannot be read
 */
export function resolveConfig(given = {}, env = process.env) {
  const config = { ...DEFAULTS, ...given };
  for (const name of ["replica", "spoolDir"]) {
    if (!config[name]) throw new Error(`shared-state: the setting "${name}" is required`);
  }
  if (!config.sentinels?.length && !config.redis) {
    throw new Error('shared-state: one of the settings "sentinels" and "redis" is required');
  }
  const twice = config.jobs.find(({ key }, index) => config.jobs.findIndex((job) => job.key === key) !== index);
  if (twice) throw new Error(`shared-state: two of the "jobs" have the key "${twice.key}"`);
  // Longer than a turn may take, so that a waiting turn outlives the one it waits for.
  config.lockWaitMs ??= (config.turnTimeoutSeconds + 5) * 1000;
  const peers = config.peersFile ? peersIn(config.peersFile, config.replica) : () => config.peers;
  return Object.freeze({
    ...config,
    get peers() {
      return peers();
    },
    // Both sides show a certificate of the cluster's own authority.
    tls: config.tls && Object.fromEntries(Object.entries(config.tls).map(([name, path]) => [name, readFileSync(path)])),
    stateDir: env.OPENCLAW_STATE_DIR,
    redisPassword: env.OPENCLAW_HA_REDIS_PASSWORD || undefined,
    sentinelPassword: env.OPENCLAW_HA_SENTINEL_PASSWORD || undefined,
    gatewayToken: env.OPENCLAW_GATEWAY_TOKEN_HA || undefined,
  });
}
