// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

// The scripts in a real Redis on a loopback port of its own.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import net from "node:net";
import { once } from "node:events";
import { after, before, beforeEach, test } from "node:test";
import { connectRedis } from "../lib/client.js";
import { Metrics } from "../lib/metrics.js";
import { Store } from "../lib/store.js";
import { temporaryDirectory } from "./support/rig.js";

let server;
let client;
const BOB = { id: "web:bob" };
const until = async (condition) => {
  const deadline = Date.now() + 10000;
  while (!(await condition())) {
    assert.ok(Date.now() < deadline, "not in time");
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
};
const storeOf = (replica) =>
  new Store({
    config: { keyPrefix: "oc:", replica, breakerOpenSeconds: 1 },
    link: { run: (operation) => operation(client) },
    metrics: new Metrics(),
  });
const FAILURE = { reason: "500", to: "ollama", trial: false, failures: 2 };
const keys = async () => (await client.keys("*")).sort();
const events = async () =>
  (await client.xrange("oc:events", "-", "+")).map(([, fields]) => ({
    ...Object.fromEntries(Array.from({ length: fields.length / 2 }, (_, i) => [fields[2 * i], fields[2 * i + 1]])),
  }));

before(async () => {
  const probe = net.createServer().listen(0, "127.0.0.1");
  await once(probe, "listening");
  const { port } = probe.address();
  probe.close();
  await once(probe, "close");
  const options = ["--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", await temporaryDirectory()];
  server = spawn("redis-server", options.map(String), { stdio: "ignore" });
  client = connectRedis({ redis: { host: "127.0.0.1", port }, commandTimeoutMs: 2000 });
  client.on("error", () => {});
  await until(() => client.status === "ready");
});
beforeEach(async () => {
  await client.flushall();
});
after(async () => {
  client.disconnect();
  server.kill();
  await once(server, "exit");
});

test("circuit: opened by all replicas together, tried by one, closed by an answer", async () => {
  const [a, b] = [storeOf("A"), storeOf("B")];
  assert.equal((await a.circuits(["cloud"]))[0].open, false);
  assert.deepEqual(await keys(), []);
  assert.equal((await a.circuitFailed("cloud", FAILURE)).opened, false);
  assert.ok((await client.pttl("oc:breaker:cloud")) > 0);
  const opened = await b.circuitFailed("cloud", FAILURE);
  assert.deepEqual([opened.open, opened.opened, opened.failures], [true, true, 2]);
  const again = await a.circuitFailed("cloud", FAILURE);
  assert.deepEqual([again.open, again.opened, again.failures], [true, false, 2]);
  assert.equal((await a.circuits(["other", "cloud"]))[1].open, true);
  assert.equal((await a.circuitTrial("cloud", 5000)).mine, false);
  await until(async () => (await a.circuits(["cloud"]))[0].until <= Date.now());
  assert.equal((await a.circuitTrial("cloud", 5000)).mine, true);
  assert.equal(await client.hget("oc:breaker:cloud", "state"), "half-open");
  const refused = await b.circuitTrial("cloud", 5000);
  assert.deepEqual([refused.mine, refused.open], [false, true]);
  // A failed trial: another period, and then the other replica may try.
  const failed = await a.circuitFailed("cloud", { ...FAILURE, trial: true });
  assert.ok(failed.open && failed.until > Date.now() + 500);
  assert.equal((await b.circuitTrial("cloud", 5000)).mine, false);
  await until(async () => (await b.circuitTrial("cloud", 5000)).mine);
  for (const key of await keys()) assert.ok((await client.pttl(key)) > 0, key);
  assert.ok((await b.circuitClosed("cloud", { from: "ollama" })) >= 2000);
  assert.equal(await b.circuitClosed("cloud", { from: "ollama" }), null);
  assert.deepEqual(await keys(), ["oc:events"]);
  const told = (await events()).map(({ type, replica, detail, at }) => [type, replica, JSON.parse(detail), Number(at)]);
  assert.deepEqual(
    told.map(([type, replica]) => [type, replica]),
    [
      ["provider_switched", "B"],
      ["provider_back", "B"],
    ],
  );
  assert.deepEqual(told[0][2], { from: "cloud", to: "ollama", reason: "500" });
  assert.equal(told[1][2].to, "cloud");
  assert.ok(Math.abs(told[0][3] - Date.now()) < 60000);
});

test("circuit: a replica that dies while trying holds nobody up", async () => {
  const store = storeOf("A");
  await store.circuitFailed("cloud", { ...FAILURE, failures: 1 });
  await until(async () => (await store.circuitTrial("cloud", 100)).mine);
  await until(async () => (await storeOf("B").circuitTrial("cloud", 100)).mine);
});

test("circuit: failures that were not enough close by an answer without an event", async () => {
  const store = storeOf("A");
  await store.circuitFailed("cloud", FAILURE);
  assert.equal(await store.circuitClosed("cloud", { from: "ollama" }), null);
  assert.deepEqual(await keys(), []);
});

test("events are capped", async () => {
  const store = storeOf("A");
  for (let number = 0; number < 700; number += 1) {
    await store.circuitFailed("cloud", { ...FAILURE, failures: 1 });
    await store.circuitClosed("cloud", { from: "ollama" });
  }
  assert.ok((await client.xlen("oc:events")) <= 1100);
});

test("buckets: one count over all replicas, all or nothing, and they go away", async () => {
  const [a, b] = [storeOf("A"), storeOf("B")];
  const all = { name: "all", perMinute: 60, burst: 3 };
  const bob = { name: `key:${BOB.id}`, perMinute: 600, burst: 1 };
  assert.equal(await a.takeTokens([all, bob]), 0);
  const wait = await b.takeTokens([all, bob]);
  assert.ok(wait > 0 && wait <= 100, String(wait));
  // The refused one has taken nothing from the bucket of all.
  assert.equal(await b.takeTokens([all]), 0);
  assert.equal(await a.takeTokens([all]), 0);
  const full = await b.takeTokens([all]);
  assert.ok(full > 0 && full <= 1000, String(full));
  await until(async () => (await a.takeTokens([bob])) === 0);
  for (const key of await keys()) assert.ok((await client.pttl(key)) > 0, key);
  assert.deepEqual(await keys(), ["oc:rate:all", "oc:rate:key:web:bob"]);
});

test("buckets: requests at the same moment get exactly the burst", async () => {
  const stores = ["A", "B", "C"].map((name) => storeOf(name));
  const limit = [{ name: "all", perMinute: 1, burst: 10 }];
  const answers = await Promise.all(Array.from({ length: 60 }, (_, i) => stores[i % 3].takeTokens(limit)));
  assert.equal(answers.filter((wait) => wait === 0).length, 10);
});
