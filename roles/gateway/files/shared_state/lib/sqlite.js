// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { DatabaseSync, StatementSync } from "node:sqlite";

// Where the gateway keeps, by path of a database, what a worker's open transaction waits for on the main thread.
const SERVICES = Symbol.for("openclaw.sqliteWriteAdmissionServices");
const WAITS_SERVED = Symbol.for("openclaw.ha.sqlite-waits-served");
const WRITES = /^\s*(insert|update|delete|replace)\b/i;
const SQLITE_BUSY = 5;
const SLICE_MS = 25;

/**
 * Lets the gateway's main thread serve a worker's transaction while it waits for that very transaction's lock.
 *
 * A worker asks the main thread's leave before it commits. The gateway's own BEGIN serves such questions while it waits,
 * but single statements (the outbox of turns, above all) do not: then the whole gateway stands still for SQLite's busy
 * timeout of 5 s, and the turn that was to be stored is skipped. Seen in 2026.9.6 with a few turns at a time. Where the
 * gateway has no such questions, nothing changes.
 */
export function serveSqliteWaits() {
  if (DatabaseSync.prototype[WAITS_SERVED]) return;
  const { prepare } = DatabaseSync.prototype;
  Object.defineProperty(DatabaseSync.prototype, WAITS_SERVED, { value: true });
  DatabaseSync.prototype.prepare = function prepareServed(sql, ...rest) {
    const statement = prepare.call(this, sql, ...rest);
    if (WRITES.test(sql)) {
      statement.run = (...values) => served(this, () => StatementSync.prototype.run.apply(statement, values));
    }
    return statement;
  };
}

function served(database, write) {
  const questions = () => globalThis[SERVICES]?.get(database.location());
  if (database.isTransaction || !questions()?.size) return write();
  const exec = (sql) => DatabaseSync.prototype.exec.call(database, sql);
  const timeout = StatementSync.prototype.get.call(database.prepare("PRAGMA busy_timeout")).timeout;
  const deadline = performance.now() + timeout;
  try {
    exec(`PRAGMA busy_timeout = ${SLICE_MS}`);
    for (;;) {
      try {
        return write();
      } catch (error) {
        if (error.errcode !== SQLITE_BUSY || performance.now() >= deadline) throw error;
        for (const answer of questions() ?? []) answer();
      }
    }
  } finally {
    exec(`PRAGMA busy_timeout = ${timeout}`);
  }
}
