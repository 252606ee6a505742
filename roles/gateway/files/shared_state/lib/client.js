// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { Redis, SentinelConnector } from "ioredis";

/** ioredis keeps `disableClientInfo` from its connections to Sentinels, where the user may not send it either. */
class QuietSentinelConnector extends SentinelConnector {
  connectToSentinel(endpoint, options) {
    return super.connectToSentinel(endpoint, { disableClientInfo: true, ...options });
  }
}

/**
 * Options for ioredis, measured under kill -9 and SIGSTOP of the primary: commands time out instead of queueing,
 * nothing is resent behind our back (we retry what is idempotent ourselves), a switched primary is noticed at once.
 * @param {object} config settings of resolveConfig
 */
export function redisOptions(config) {
  const backoff = (attempt) => Math.min(50 * attempt, 500);
  const common = {
    username: config.redisUser,
    password: config.redisPassword,
    connectTimeout: config.commandTimeoutMs,
    commandTimeout: config.commandTimeoutMs,
    maxRetriesPerRequest: null,
    enableOfflineQueue: false,
    autoResendUnfulfilledCommands: false,
    reconnectOnError: (error) => /READONLY/.test(error.message),
    retryStrategy: backoff,
    // Nobody reads it, and the user may not send it.
    disableClientInfo: true,
    ...(config.tls && { tls: config.tls }),
  };
  if (!config.sentinels?.length) return { ...common, ...config.redis };
  return {
    ...common,
    sentinels: config.sentinels,
    name: config.monitorName,
    sentinelUsername: config.sentinelUser,
    sentinelPassword: config.sentinelPassword,
    sentinelTLS: config.tls,
    enableTLSForSentinelMode: Boolean(config.tls),
    sentinelCommandTimeout: config.commandTimeoutMs,
    sentinelRetryStrategy: backoff,
    failoverDetector: true,
    Connector: QuietSentinelConnector,
  };
}

/** Opens a connection to the Redis primary. */
export const connectRedis = (config) => new Redis(redisOptions(config));
