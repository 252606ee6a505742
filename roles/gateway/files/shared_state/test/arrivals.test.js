// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import assert from "node:assert/strict";
import fs from "node:fs/promises";
import path from "node:path";
import { DatabaseSync } from "node:sqlite";
import { beforeEach, test } from "node:test";
import { Arrivals } from "../lib/arrivals.js";
import { RedisAway } from "../lib/outage.js";
import { Queue } from "../lib/queue.js";
import { temporaryDirectory } from "./support/rig.js";

// As far as OpenClaw 2026.9.6 has it.
const TABLE = `CREATE TABLE channel_ingress_events (queue_name TEXT NOT NULL, event_id TEXT NOT NULL, channel_id TEXT NOT NULL, account_id TEXT NOT NULL,
  status TEXT NOT NULL, updated_at INTEGER NOT NULL, PRIMARY KEY (queue_name, event_id)) STRICT`;

let stateDir, database, told, away, said;

beforeEach(async () => {
  stateDir = await temporaryDirectory();
  await fs.mkdir(path.join(stateDir, "state"));
  database = new DatabaseSync(path.join(stateDir, "state", "openclaw.sqlite"));
  database.exec(`PRAGMA journal_mode = WAL; ${TABLE}`);
  [told, away, said] = [[], false, []];
});

const put = (event, status, at = Date.now(), channel = "telegram") =>
  database
    .prepare("INSERT OR REPLACE INTO channel_ingress_events VALUES (?, ?, ?, 'main', ?, ?)")
    .run(`["${channel}","main"]`, event, channel, status, at);

const arrivals = () => {
  const store = {
    async tellArrivals(events) {
      if (away) throw new RedisAway();
      told.push(...events.map(({ name, status }) => `${name} ${status}`));
    },
  };
  const made = new Arrivals({ queue: new Queue(stateDir), store, log: { warn: (text) => said.push(text), error: (text) => said.push(text) } });
  made.start();
  return made;
};

test("what the gateway is through with is told once, by the provider's own id", async () => {
  put("0000000000000001", "completed", Date.now() - 60000);
  const looking = arrivals();
  put("0000000285867376", "completed");
  put("0000000285867377", "claimed");
  put("Ev01", "failed", Date.now(), "slack");
  await looking.look();
  await looking.look();
  assert.deepEqual(told.sort(), ["slack/main/Ev01 failed", "telegram/main/285867376 completed"]);
  put("0000000285867377", "completed");
  await looking.look();
  assert.equal(told.at(-1), "telegram/main/285867377 completed");
  assert.equal(told.length, 3);
  looking.stop();
});

test("what Redis did not take is told later", async () => {
  const looking = arrivals();
  put("7", "completed");
  away = true;
  await looking.look();
  away = false;
  await looking.look();
  assert.deepEqual(told, ["telegram/main/7 completed"]);
  looking.stop();
});

test("a release that keeps it otherwise is told of, once", async () => {
  database.exec("DROP TABLE channel_ingress_events");
  const looking = arrivals();
  await looking.look();
  assert.match(said.join(), /begins no turn is not told/);
  assert.equal(said.length, 1);
});

test("without an ingress nothing is looked at", () => {
  const quiet = new Arrivals({ queue: null, store: {}, log: {} });
  quiet.start();
  quiet.stop();
});
