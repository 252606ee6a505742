// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import assert from "node:assert/strict";
import path from "node:path";
import { DatabaseSync } from "node:sqlite";
import { after, beforeEach, test } from "node:test";
import { serveSqliteWaits } from "../lib/sqlite.js";
import { temporaryDirectory } from "./support/rig.js";

const SERVICES = Symbol.for("openclaw.sqliteWriteAdmissionServices");
const BUSY_MS = 400;

let main;
let worker;

beforeEach(async () => {
  serveSqliteWaits();
  serveSqliteWaits(); // the gateway registers a plugin more than once
  const file = path.join(await temporaryDirectory(), "x.sqlite");
  main = new DatabaseSync(file);
  main.exec(`PRAGMA journal_mode = WAL; PRAGMA busy_timeout = ${BUSY_MS}; CREATE TABLE t (x INTEGER)`);
  worker = new DatabaseSync(file);
  globalThis[SERVICES] = new Map();
});
after(() => delete globalThis[SERVICES]);

const rows = () => main.prepare("SELECT count(*) AS n FROM t").get().n;
const timeout = () => main.prepare("PRAGMA busy_timeout").get().timeout;

test("a statement that waits for a worker's lock answers the worker's question", () => {
  worker.exec("BEGIN IMMEDIATE; INSERT INTO t VALUES (1)");
  globalThis[SERVICES].set(main.location(), new Set([() => worker.isTransaction && worker.exec("COMMIT")]));
  const insert = main.prepare("INSERT INTO t VALUES (?)");
  assert.equal(insert.run(2).changes, 1);
  assert.equal(rows(), 2);
  assert.equal(timeout(), BUSY_MS);
});

test("a lock that nobody gives up is an error after the busy timeout, as before", () => {
  worker.exec("BEGIN IMMEDIATE");
  globalThis[SERVICES].set(main.location(), new Set([() => {}]));
  const began = performance.now();
  assert.throws(() => main.prepare("INSERT INTO t VALUES (1)").run(), /database is locked/);
  assert.ok(performance.now() - began >= BUSY_MS);
  assert.equal(timeout(), BUSY_MS);
  worker.exec("ROLLBACK");
});

test("other errors, transactions and gateways without questions are left alone", () => {
  main.prepare("INSERT INTO t VALUES (1)").run();
  delete globalThis[SERVICES];
  main.prepare("INSERT INTO t VALUES (2)").run();
  globalThis[SERVICES] = new Map([[main.location(), new Set([() => assert.fail("served within a transaction")])]]);
  main.exec("CREATE UNIQUE INDEX i ON t (x)");
  assert.throws(() => main.prepare("INSERT INTO t VALUES (1)").run(), /UNIQUE/);
  main.exec("BEGIN");
  main.prepare("INSERT INTO t VALUES (3)").run();
  main.exec("COMMIT");
  assert.equal(rows(), 3);
});
