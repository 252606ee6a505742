// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import assert from "node:assert/strict";
import { EventEmitter } from "node:events";
import { test } from "node:test";
import { Link } from "../lib/link.js";
import { Metrics } from "../lib/metrics.js";
import { RedisAway } from "../lib/outage.js";

function make(outageWaitMs) {
  const said = [];
  let back = 0;
  let opened = 0;
  const log = { warn: (text) => said.push(text) };
  let ping = broken;
  const chain = { hset: () => chain, expire: () => chain, exec: async () => [[null, 1]] };
  const connect = () => {
    opened += 1;
    const client = { status: "ready", disconnect() {}, ping: () => ping(), multi: () => chain };
    return Object.assign(new EventEmitter(), client);
  };
  const link = new Link({
    config: { outageWaitMs },
    log,
    metrics: new Metrics(),
    heartbeatKey: "k",
    onBack: () => {
      back += 1;
    },
    connect,
  });
  const answering = () => {
    ping = async () => "PONG";
  };
  return { link, said, answering, back: () => back, opened: () => opened };
}
const broken = async () => {
  throw new Error("Connection is closed.");
};

test("an operation outlives a failover", async () => {
  const { link, said } = make(5000);
  let tries = 0;
  const answer = await link.run(async () => {
    tries += 1;
    if (tries < 3) throw new Error("Command timed out");
    return 7;
  });
  assert.equal(answer, 7);
  assert.deepEqual(said, []);
  link.stop();
});

test("an outage is waited for once, said once, and its end is said once", async () => {
  const { link, said, back } = make(1000);
  await assert.rejects(link.run(broken), RedisAway);
  assert.equal(link.away, true);
  const start = Date.now();
  await assert.rejects(link.run(broken), RedisAway);
  await assert.rejects(
    link.run(async () => 1),
    RedisAway,
    "not even tried",
  );
  assert.ok(Date.now() - start < 500);
  assert.equal(said.length, 1);
  assert.equal(await link.run(async () => 1, { once: true }), 1);
  assert.equal(link.away, false);
  assert.equal(back(), 1);
  assert.equal(said.length, 2);
  link.stop();
});

test("an error of one command is not an outage", async () => {
  const { link } = make(50);
  const wrong = Object.assign(new Error("WRONGTYPE"), { name: "ReplyError" });
  await assert.rejects(
    link.run(async () => {
      throw wrong;
    }),
    wrong,
  );
  assert.equal(link.healthy, true);
  link.stop();
});

test("after any trouble other replicas may lag behind; while it lasts, it is waited out", async () => {
  const { link, answering } = make(60);
  assert.equal(await link.unsettled(), false);
  await assert.rejects(link.run(broken, { once: true }), RedisAway);
  await assert.rejects(link.unsettled(), RedisAway, "the end of a failover is awaited, and no longer");
  assert.equal(link.away, true);
  answering();
  assert.equal(await link.run(async () => 1, { once: true }), 1);
  await link.run(broken, { once: true }).catch(() => {});
  assert.equal(await link.unsettled(), true);
  link.stop();
});

test("each purpose has a connection of its own", async () => {
  const { link, opened } = make(50);
  assert.equal(opened(), 2);
  const seen = new Set();
  await link.run(async (client) => seen.add(client));
  await link.run(async (client) => seen.add(client), { client: "commits" });
  assert.equal(seen.size, 2);
  link.stop();
});
