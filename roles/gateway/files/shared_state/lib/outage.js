// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

/** Redis cannot be used now, and waiting longer was not allowed. */
export class RedisAway extends Error {
  constructor(cause) {
    super(`Redis is away${cause ? `: ${cause.message}` : ""}`);
    this.name = "RedisAway";
  }
}

const SERVER_TROUBLE =
  /READONLY|NOREPLICAS|LOADING|MASTERDOWN|MISCONF|CLUSTERDOWN|TRYAGAIN|NOAUTH|WRONGPASS|NOPERM|OOM command|BUSY Redis/;

/**
 * Does this error mean that Redis as a whole cannot serve (connection, time-out, a server without a write quorum), and
 * not that one command was wrong? Only the first kind may be waited out.
 * @param {Error} error
 */
export const isOutage = (error) => error.name !== "ReplyError" || SERVER_TROUBLE.test(error.message);

/** Has Redis refused a write for want of memory? */
export const isFull = (error) => /^OOM command/.test(error.message);

/** Why a command failed: of a transaction that was discarded, what its first refused command was told. */
export const causeOf = (error) => error.previousErrors?.[0] ?? error;

/**
 * How long one outage may hold turns up: everybody waits for the new primary until `waitMs` after its first failure,
 * together and once; from then on Redis counts as away and nobody waits until a write has succeeded again.
 */
export class Outage {
  #waitMs;
  #since = null;
  #away = false;
  #endedAt = -Infinity;

  constructor(waitMs) {
    this.#waitMs = waitMs;
  }

  get away() {
    return this.#away;
  }
  get suspected() {
    return this.#since !== null;
  }

  /** Milliseconds since the first failure; 0 when there is none. */
  lasted(now) {
    return this.#since === null ? 0 : now - this.#since;
  }

  /** Milliseconds since the last failure was overcome; Infinity when there was none. */
  calm(now) {
    return now - this.#endedAt;
  }

  /** @returns {boolean} true when this failure turns a suspicion into an outage */
  failed(now) {
    this.#since ??= now;
    if (this.#away || now - this.#since < this.#waitMs) return false;
    this.#away = true;
    return true;
  }

  /** @returns {boolean} true when this ends an outage */
  succeeded(now) {
    const ended = this.#away;
    if (this.suspected) this.#endedAt = now;
    this.#since = null;
    this.#away = false;
    return ended;
  }
}
