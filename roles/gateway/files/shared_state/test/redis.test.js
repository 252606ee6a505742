// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

// The scripts in a real Redis on a loopback port of its own, over TLS, by the user "app" with the rules that the roles
// give it.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import fs from "node:fs/promises";
import path from "node:path";
import net from "node:net";
import { once } from "node:events";
import { after, before, beforeEach, test } from "node:test";
import { connectRedis, redisOptions } from "../lib/client.js";
import { resolveConfig } from "../lib/config.js";
import { Metrics } from "../lib/metrics.js";
import { Store } from "../lib/store.js";
import { temporaryDirectory } from "./support/rig.js";

let server;
let client;
let admin;
let settings;
const RULES = JSON.parse(
  execFileSync("python3", [
    "-c",
    "import json, runpy, sys; print(json.dumps(runpy.run_path(sys.argv[1])['RULES']))",
    path.resolve(import.meta.dirname, "../../../../../plugins/module_utils/redis_access.py"),
  ]),
);
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
const keys = async () => (await admin.keys("*")).sort();
const events = async () =>
  (await admin.xrange("oc:events", "-", "+")).map(([, fields]) => ({
    ...Object.fromEntries(Array.from({ length: fields.length / 2 }, (_, i) => [fields[2 * i], fields[2 * i + 1]])),
  }));

/** An authority, and a certificate of it for 127.0.0.1. @returns {Promise<{ca: string, cert: string, key: string}>} paths */
async function certificates(directory) {
  const of = (name) => path.join(directory, name);
  const make = (name, ...options) => {
    const files = ["-keyout", of(`${name}.key`), "-out", of(`${name}.pem`)];
    const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"];
    execFileSync("openssl", ["req", "-x509", "-days", "1", ...key, ...files, ...options], { stdio: "ignore" });
  };
  make("ca", "-subj", "/CN=authority");
  const signer = ["-CA", of("ca.pem"), "-CAkey", of("ca.key")];
  make("server", "-subj", "/CN=server", ...signer, "-addext", "subjectAltName=IP:127.0.0.1");
  return { ca: of("ca.pem"), cert: of("server.pem"), key: of("server.key") };
}

const tryToSend = async (options, ...command) => {
  const one = connectRedis({ ...settings, ...options });
  let seen;
  one.on("error", (error) => {
    seen = error;
  });
  try {
    await until(() => one.status === "ready" || seen);
    if (seen) throw seen;
    return await one.call(...command);
  } finally {
    one.disconnect();
  }
};

before(async () => {
  const probe = net.createServer().listen(0, "127.0.0.1");
  await once(probe, "listening");
  const { port } = probe.address();
  probe.close();
  await once(probe, "close");
  const directory = await temporaryDirectory();
  const tls = await certificates(directory);
  const users = Object.entries(RULES.redis).map(([name, rules]) => `user ${name} on >${name}-password ${rules}\n`);
  await fs.writeFile(path.join(directory, "users.acl"), ["user default off\n", ...users].join(""));
  const options = ["--port", 0, "--tls-port", port, "--bind", "127.0.0.1", "--save", "", "--dir", directory];
  options.push("--tls-ca-cert-file", tls.ca, "--tls-cert-file", tls.cert, "--tls-key-file", tls.key);
  options.push("--aclfile", path.join(directory, "users.acl"));
  server = spawn("redis-server", options.map(String), { stdio: "ignore" });
  settings = {
    ...resolveConfig(
      { replica: "A", spoolDir: directory, redis: { host: "127.0.0.1", port }, redisUser: "app", tls },
      { OPENCLAW_HA_REDIS_PASSWORD: "app-password" },
    ),
    commandTimeoutMs: 2000,
  };
  client = connectRedis(settings);
  admin = connectRedis({ ...settings, redisUser: "admin", redisPassword: "admin-password" });
  for (const one of [client, admin]) one.on("error", () => {});
  await until(() => client.status === "ready" && admin.status === "ready");
});
beforeEach(async () => {
  await admin.flushall();
});
after(async () => {
  client.disconnect();
  admin.disconnect();
  server.kill();
  await once(server, "exit");
});

test("circuit: opened by all replicas together, tried by one, closed by an answer", async () => {
  const [a, b] = [storeOf("A"), storeOf("B")];
  assert.equal((await a.circuits(["cloud"]))[0].open, false);
  assert.deepEqual(await keys(), []);
  assert.equal((await a.circuitFailed("cloud", FAILURE)).opened, false);
  assert.ok((await admin.pttl("oc:breaker:cloud")) > 0);
  const opened = await b.circuitFailed("cloud", FAILURE);
  assert.deepEqual([opened.open, opened.opened, opened.failures], [true, true, 2]);
  const again = await a.circuitFailed("cloud", FAILURE);
  assert.deepEqual([again.open, again.opened, again.failures], [true, false, 2]);
  assert.equal((await a.circuits(["other", "cloud"]))[1].open, true);
  assert.equal((await a.circuitTrial("cloud", 5000)).mine, false);
  await until(async () => (await a.circuits(["cloud"]))[0].until <= Date.now());
  assert.equal((await a.circuitTrial("cloud", 5000)).mine, true);
  assert.equal(await admin.hget("oc:breaker:cloud", "state"), "half-open");
  const refused = await b.circuitTrial("cloud", 5000);
  assert.deepEqual([refused.mine, refused.open], [false, true]);
  // A failed trial: another period, and then the other replica may try.
  const failed = await a.circuitFailed("cloud", { ...FAILURE, trial: true });
  assert.ok(failed.open && failed.until > Date.now() + 500);
  assert.equal((await b.circuitTrial("cloud", 5000)).mine, false);
  await until(async () => (await b.circuitTrial("cloud", 5000)).mine);
  for (const key of await keys()) assert.ok((await admin.pttl(key)) > 0, key);
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
  assert.ok((await admin.xlen("oc:events")) <= 1100);
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
  for (const key of await keys()) assert.ok((await admin.pttl(key)) > 0, key);
  assert.deepEqual(await keys(), ["oc:rate:all", "oc:rate:key:web:bob"]);
});

test("buckets: requests at the same moment get exactly the burst", async () => {
  const stores = ["A", "B", "C"].map((name) => storeOf(name));
  const limit = [{ name: "all", perMinute: 1, burst: 10 }];
  const answers = await Promise.all(Array.from({ length: 60 }, (_, i) => stores[i % 3].takeTokens(limit)));
  assert.equal(answers.filter((wait) => wait === 0).length, 10);
});

test("every operation of the plugin is allowed, and nothing else was tried", async () => {
  await admin.call("ACL", "LOG", "RESET");
  const settled = { ...settings, waitReplicas: 1, waitTimeoutMs: 10, maxTurns: 5, breakerOpenSeconds: 1 };
  const store = new Store({
    config: settled,
    link: { run: (operation) => operation(client), aside: (operation) => operation(client) },
    metrics: new Metrics(),
  });
  const conv = { id: "web:ada", channel: "web", user: "ada" };
  const turn = (id, at) => ({ id, replica: "A", at, messages: [{ role: "user", content: id }] });
  const commit = (id, at, base, mode, idempotency) =>
    store.commit({ conv, owner: "o", base, epoch: 0, turn: turn(id, at), idempotency }, { mode });
  await store.begin(conv, "o");
  assert.equal((await commit("one", 10, 0, "next", { key: "k", answer: { state: "done" } })).status, "committed");
  await store.begin(conv, "o");
  assert.deepEqual(await commit("early", 5, 0, "kept"), { status: "committed", seq: 2, late: true, confirmed: false });
  assert.equal((await commit("early", 5, 0, "kept")).status, "duplicate");
  assert.deepEqual((await store.read(conv)).turns.map(({ id }) => id), ["early", "one"]);
  await store.begin(conv, "o");
  assert.equal(await store.renew(conv, "o"), true);
  await store.release(conv, "o");
  await store.compact(conv, 1);
  await admin.config("SET", "maxmemory", "1");
  const room = await store.makeRoom({ above: 85, until: 80, idleMs: -1000, most: 5, skip: 0 });
  await store.tellDropped(room.dropped, room.freed);
  await admin.config("SET", "maxmemory", "0");
  assert.deepEqual([room.dropped, await admin.hget("oc:session:web:ada", "dropped")], [1, "1"]);
  await store.compact(conv, 0);
  await store.reset(conv);
  const key = store.dedupeKey(["a", "b", "c", "d"]);
  assert.equal(await store.claim(key, "o", 1000, "f"), null);
  const stateOf = async () => JSON.parse(await admin.get(key)).state;
  await store.settle(key, "o", { state: "committed", owner: "o" }, 10);
  assert.equal(await store.settle(key, "p", { state: "committed", owner: "p" }, 10), false, "it is another one's");
  await store.settle(key, "o", null, 10);
  assert.equal(await stateOf(), "committed", "what is committed is not given back");
  assert.equal((await store.claim(key, "p", 1000)).state, "committed");
  await store.settle(key, "o", { state: "done" }, 10);
  await store.settle(key, "o", { state: "committed" }, 10);
  assert.equal(await stateOf(), "done");
  await store.tellArrivals([{ name: "telegram/webhook/7", status: "completed" }]);
  assert.deepEqual([await admin.get("oc:inbound:telegram/webhook/7"), (await admin.ttl("oc:inbound:telegram/webhook/7")) > 3000], ["completed", true]);
  const tick = { job: "daily", schedule: "* * * * * UTC", run: "r" };
  const claimed = await store.cronClaim({ ...tick, slot: 120000, due: [60000] });
  assert.deepEqual(claimed, { mine: true, unfinished: 0, missed: 1, confirmed: false });
  await store.cronDone({ ...tick, slot: 120000, ok: true, next: 180000 });
  assert.equal(await admin.hget("oc:cron:daily", "state"), "done");
  assert.equal((await store.cronClaim({ ...tick, slot: 240000, due: [] })).missed, 1);
  await admin.zadd("oc:cron:daily:open", 1, "240000");
  assert.equal((await store.cronClaim({ ...tick, slot: 300000, due: [] })).unfinished, 1);
  await store.writeMetrics({ version: "1" });
  assert.deepEqual(await admin.call("ACL", "LOG"), []);
});

test("other keys and other commands are refused", async () => {
  const refused = { name: "ReplyError", message: /NOPERM/ };
  await assert.rejects(client.get("elsewhere"), refused);
  await assert.rejects(client.eval("return redis.call('GET', 'elsewhere')", 0), { message: /ACL|can't access|NOPERM/ });
  for (const command of ["FLUSHALL", "KEYS *", "CONFIG GET *", "ACL LIST", "REPLICAOF NO ONE", "PUBLISH a b"]) {
    await assert.rejects(client.call(...command.split(" ")), refused, command);
  }
});

test("a wrong password, another user's and none are refused", async () => {
  for (const redisPassword of ["wrong", "replica-password", undefined]) {
    await assert.rejects(tryToSend({ redisPassword }, "PING"), { message: /WRONGPASS|NOAUTH/ });
  }
});

test("without a certificate, or with one of another authority, there is no connection", async () => {
  const other = await certificates(await temporaryDirectory());
  const { tls: files } = resolveConfig({ replica: "A", spoolDir: "/", redis: {}, tls: other }, {});
  await assert.rejects(tryToSend({ tls: { ca: settings.tls.ca } }, "PING"));
  await assert.rejects(tryToSend({ tls: { ...files, ca: settings.tls.ca } }, "PING"));
  const deceived = { tls: { ...settings.tls, ca: files.ca } };
  await assert.rejects(tryToSend(deceived, "PING"), { message: /certificate|signature|issuer/ });
});

test("Sentinels are reached as their own user, over TLS when Redis is", () => {
  const sentinels = [{ host: "s", port: 1 }];
  const config = { ...settings, sentinels, monitorName: "m", sentinelUser: "client", sentinelPassword: "p" };
  const options = redisOptions(config);
  assert.deepEqual([options.username, options.sentinelUsername, options.sentinelPassword], ["app", "client", "p"]);
  assert.equal(options.enableTLSForSentinelMode, true);
  assert.equal(options.sentinelTLS, options.tls);
  // Neither Redis nor a Sentinel is told which library this is: the users may not say it.
  const sentinel = new options.Connector(options).connectToSentinel({ host: "127.0.0.1", port: 1 }, { lazyConnect: true });
  assert.deepEqual([options.disableClientInfo, sentinel.options.disableClientInfo], [true, true]);
  const plain = redisOptions({ ...config, tls: undefined });
  assert.deepEqual([plain.enableTLSForSentinelMode, plain.sentinelTLS, "tls" in plain], [false, undefined, false]);
});

test("a certificate that is not there is said at once", () => {
  const given = { replica: "A", spoolDir: "/", redis: {}, tls: { ca: "/nowhere/ca.pem" } };
  assert.throws(() => resolveConfig(given, {}), /nowhere\/ca\.pem/);
});
