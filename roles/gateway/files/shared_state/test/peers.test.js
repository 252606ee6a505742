// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import http from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, test } from "node:test";
import { resolveConfig } from "../lib/config.js";
import { Metrics } from "../lib/metrics.js";
import { chooseOwner, FORWARDED, Peers, peersIn } from "../lib/peers.js";
import { assemble, FakeRedis, gateway, post, replica } from "./support/rig.js";

const NAMES = ["A", "B", "C"];
const CONV = { channel: "web", user: "bob", id: "web:bob" };
let redis;
let replicas;
let servers;
let shown; // what each model call was shown: {at, text, before}
let behaviour;

const knowledge = (name, more = {}) => ({ replica: name, redis: false, known: 5, pending: 0, key: false, ...more });
const run = async (context) => {
  const before = await assemble(context);
  shown.push({ at: context.runtime.config.replica, text: context.text, before });
  return behaviour(context);
};
const peersOf = (name) =>
  NAMES.filter((other) => other !== name).map((id) => ({ id, url: replicas[id].config.gatewayUrl }));
const ownerOf = (id = CONV.id) => chooseOwner(id, NAMES.map((name) => knowledge(name))).replica;
const failure = (status, code, headers) => (_req, res) =>
  res.writeHead(status, headers).end(JSON.stringify({ error: { code, message: "x" } }));
const closed = (server) => new Promise((resolve) => server.close(resolve).closeAllConnections());

beforeEach(async () => {
  redis = new FakeRedis();
  shown = [];
  behaviour = async () => {};
  replicas = {};
  servers = {};
  for (const name of NAMES) {
    replicas[name] = await replica(redis, name, { messageMaxBytes: 500, routeWaitMs: 2000 });
    servers[name] = await gateway(replicas[name], run);
  }
  for (const name of NAMES) replicas[name].config.peers = peersOf(name);
});
afterEach(() => Promise.all(Object.values(servers).map(closed)));

test("the choice: key, turns that Redis has not got, a replica with Redis, most known", () => {
  const choose = (...more) => chooseOwner("web:bob", NAMES.map((name, index) => knowledge(name, more[index]))).replica;
  assert.equal(choose({}, { known: 6 }, {}), "B");
  assert.equal(choose({ redis: true }, { known: 6 }, {}), "A");
  assert.equal(choose({ redis: true }, { known: 6 }, { known: 4, pending: 1 }), "C");
  assert.equal(choose({ pending: 1 }, { known: 6, pending: 1 }, { known: 9 }), "B");
  assert.equal(choose({ redis: true }, { known: 4, key: true }, { known: 9, pending: 3 }), "B");
});

test("a tie: alike whoever asks, spread over the replicas by conversation, and kept when another one is gone", () => {
  const all = NAMES.map((name) => knowledge(name));
  const counts = { A: 0, B: 0, C: 0 };
  for (let i = 0; i < 300; i += 1) {
    const { replica: owner } = chooseOwner(`web:${i}`, all);
    counts[owner] += 1;
    assert.equal(chooseOwner(`web:${i}`, all.toReversed()).replica, owner);
    const fewer = all.filter(({ replica: name }) => name === owner || name !== NAMES[i % 3]);
    assert.equal(chooseOwner(`web:${i}`, fewer).replica, owner);
    // Of replicas with Redis, how much each remembers does not matter.
    const connected = all.map((one, index) => ({ ...one, redis: true, known: (i + index) % 3 }));
    assert.equal(chooseOwner(`web:${i}`, connected).replica, owner);
  }
  for (const name of NAMES) assert.ok(counts[name] > 60, JSON.stringify(counts));
});

test("Redis away: turns over all replicas are one conversation", async () => {
  for (const [index, text] of ["1", "2", "3"].entries()) await post(replicas[NAMES[index]], text);
  redis.away = true;
  const owners = new Set();
  for (let i = 4; i < 10; i += 1) owners.add((await post(replicas[NAMES[i % 3]], String(i))).replica);
  assert.deepEqual([...owners], ["C"], "who has stored the last turn knows most");
  for (const { text, before } of shown) {
    assert.deepEqual(before, Array.from({ length: Number(text) - 1 }, (_, i) => String(i + 1)));
  }
  redis.away = false;
  for (const name of NAMES) await replicas[name].replayer.all();
  assert.deepEqual(redis.texts("web:bob"), ["1", "2", "3", "4", "5", "6", "7", "8", "9"]);
  assert.equal(redis.of(CONV).turns.some(({ late }) => late), false);
  redis.away = true;
  await post(replicas.A, "10");
  assert.equal(shown.at(-1).before.length, 9, "what was kept is remembered, too, when Redis goes away again");
});

test("two turns of one conversation at once: one after the other", async () => {
  redis.away = true;
  let running = 0;
  behaviour = async () => {
    running += 1;
    assert.equal(running, 1);
    await new Promise((resolve) => setTimeout(resolve, 50));
    running -= 1;
  };
  const answers = await Promise.all(NAMES.map((name) => post(replicas[name], name)));
  assert.deepEqual(answers.map(({ status }) => status), [200, 200, 200]);
  assert.deepEqual(shown.map(({ before }) => before.length), [0, 1, 2]);
});

test("a turn that began with Redis goes first, and its replica is the one that knows", async () => {
  await post(replicas.A, "1");
  let release;
  const began = new Promise((resolve) => {
    behaviour = async ({ text }) => {
      if (text !== "2") return;
      resolve();
      await new Promise((go) => (release = go));
    };
  });
  const first = post(replicas.B, "2");
  await began;
  redis.away = true;
  const second = post(replicas.C, "3");
  while (replicas.B.know(CONV).pending < 2) await new Promise(setImmediate);
  release();
  assert.deepEqual([(await first).replica, (await second).replica], ["B", "B"]);
  assert.deepEqual(shown.at(-1).before, ["1", "2"]);
});

test("Redis goes away between a turn's lock and its model call: it is shown what the lock has read", async () => {
  await post(replicas.A, "1");
  await post(replicas.B, "2");
  for (const name of NAMES) {
    const { store } = replicas[name];
    const { begin } = store;
    store.begin = async (...args) => {
      const view = await begin(...args);
      redis.away = true;
      return view;
    };
  }
  assert.equal((await post(replicas.A, "3")).replica, "A");
  assert.deepEqual(shown.at(-1).before, ["1", "2"]);
  assert.equal((await post(replicas.C, "4")).replica, "A");
  assert.deepEqual(shown.at(-1).before, ["1", "2", "3"]);
});

test("the same key on two replicas while Redis is away, and again on the third: one answer", async () => {
  redis.away = true;
  behaviour = () => new Promise((resolve) => setTimeout(resolve, 50));
  const both = await Promise.all([post(replicas.A, "hi", { key: "k" }), post(replicas.B, "hi", { key: "k" })]);
  const again = await post(replicas.C, "hi", { key: "k" });
  assert.equal(shown.length, 1);
  assert.deepEqual(new Set([...both, again].map(({ replica: name }) => name)).size, 1);
  assert.equal(again.headers.get("idempotency-replayed"), "true");
  const { status } = await post(replicas.C, "ho", { key: "k" });
  assert.equal(status, 422);
});

test("a key that was answered with Redis is not answered again without it, whoever knows more", async () => {
  await post(replicas.A, "1", { key: "k" });
  await post(replicas.B, "2");
  redis.away = true;
  assert.equal((await post(replicas.C, "1", { key: "k" })).replica, "A");
  assert.equal(shown.length, 2);
});

test("a key whose answer is in the spool outlives a restart", async () => {
  redis.away = true;
  const owner = replicas[ownerOf()];
  await post(owner, "1", { key: "k" });
  owner.answers.delete("k");
  for (const name of NAMES) assert.equal((await post(replicas[name], "1", { key: "k" })).status, 200);
  assert.equal(shown.length, 1);
});

test("a peer that is dead or frozen is left out", async () => {
  redis.away = true;
  const owner = ownerOf();
  const [asked] = NAMES.filter((name) => name !== owner);
  await closed(servers[owner]);
  assert.notEqual((await post(replicas[asked], "1")).replica, owner);
  const frozen = http.createServer(() => {}).listen(0, "127.0.0.1");
  await once(frozen, "listening");
  replicas[asked].config.peers.find(({ id }) => id === owner).url = `http://127.0.0.1:${frozen.address().port}`;
  assert.equal((await post(replicas[asked], "2")).status, 200);
  await closed(frozen);
  assert.deepEqual(shown.at(-1).before, ["1"]);
  assert.equal(replicas[asked].metrics.get("peers_silent"), 2);
});

/** In front of a replica: answers questions, and does something else to turns. */
async function ill(name, turn) {
  const server = http.createServer(async (req, res) => {
    if (req.url === "/api/v1/message") turn(req, res);
    else await replicas[name].peers.handle(req, res);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  for (const other of NAMES) {
    const peer = replicas[other].config.peers.find(({ id }) => id === name);
    if (peer) peer.url = `http://127.0.0.1:${server.address().port}`;
  }
  return server;
}

test("a target that refuses the turn: answered by the next; one that dies with it: 503, nothing is run", async () => {
  redis.away = true;
  const owner = ownerOf();
  const [asked] = NAMES.filter((name) => name !== owner);
  const dies = await ill(owner, (req) => req.socket.destroy());
  const { status, error, headers } = await post(replicas[asked], "1", { key: "k" });
  assert.deepEqual([status, error.code, headers.get("retry-after")], [503, "outcome_unknown", "1"]);
  assert.equal(shown.length, 0);
  const refuses = await ill(owner, failure(503, "gateway_unavailable"));
  const answer = await post(replicas[asked], "1", { key: "k" });
  assert.equal(answer.status, 200);
  assert.notEqual(answer.replica, owner);
  const fails = await ill(owner, failure(502, "provider_failed", { "retry-after": "5" }));
  for (const runtime of Object.values(replicas)) assert.equal(runtime.running.size, 0);
  const user = Array.from({ length: 99 }, (_, i) => `u${i}`).find((name) => ownerOf(`web:${name}`) === owner);
  const failed = await post(replicas[asked], "1", { user });
  assert.deepEqual([failed.status, failed.error.code], [502, "provider_failed"]);
  assert.equal(failed.headers.get("retry-after"), "5");
  await Promise.all([dies, refuses, fails].map(closed));
});

test("a turn is passed on once", async () => {
  redis.away = true;
  const [asked] = NAMES.filter((name) => name !== ownerOf());
  assert.equal((await post(replicas[asked], "1", { headers: { [FORWARDED]: "x" } })).replica, asked);
});

test("only one replica is cut off from Redis: the others' turns go on, and its own go through them", async () => {
  await post(replicas.A, "1");
  replicas.A.redisAway = () => true;
  await post(replicas.B, "2");
  assert.notEqual((await post(replicas.A, "3")).replica, "A");
  await post(replicas.C, "4");
  assert.deepEqual(redis.texts("web:bob"), ["1", "2", "3", "4"]);
  assert.deepEqual(shown.at(-1).before, ["1", "2", "3"]);
});

test("the return, this replica first: waits until the other one has written what it holds", async () => {
  await post(replicas.A, "1");
  redis.away = true;
  await post(replicas.B, "2");
  assert.equal(shown.at(-1).at, "A");
  redis.away = false;
  replicas.A.redisAway = () => true;
  replicas.B.graceful = true;
  const answer = post(replicas.B, "3");
  await new Promise((resolve) => setTimeout(resolve, 250));
  assert.equal(shown.length, 2, "still waiting");
  replicas.A.redisAway = () => false;
  await replicas.A.replayer.all();
  assert.equal((await answer).replica, "B");
  assert.deepEqual(shown.at(-1).before, ["1", "2"]);
  assert.deepEqual(redis.texts("web:bob"), ["1", "2", "3"]);
});

test("the return, the other one first: who still misses Redis asks, and its own turns come first", async () => {
  await post(replicas.A, "1");
  redis.away = true;
  await post(replicas.A, "2");
  redis.away = false;
  replicas.A.redisAway = () => true;
  replicas.C.redisAway = () => true;
  for (const name of ["A", "C"]) assert.equal((await post(replicas[name], `${name}`)).replica, "A");
  assert.deepEqual(shown.at(-1).before, ["1", "2", "A"]);
  replicas.A.redisAway = () => false;
  await replicas.A.replayer.all();
  // Nothing is kept any more: C passes its turns to those that have Redis.
  assert.notEqual((await post(replicas.C, "last")).replica, "C");
  assert.deepEqual(redis.texts("web:bob"), ["1", "2", "A", "C", "last"]);
  assert.equal(redis.of(CONV).turns.some(({ late }) => late), false);
});

test("the return: a key that another replica has answered meanwhile is not answered again", async () => {
  await post(replicas.A, "1");
  redis.away = true;
  await post(replicas.A, "2", { key: "k" });
  redis.away = false;
  replicas.B.graceful = true;
  const again = post(replicas.B, "2", { key: "k" });
  await new Promise((resolve) => setTimeout(resolve, 150));
  await replicas.A.replayer.all();
  assert.equal((await again).replica, "A");
  assert.equal(shown.length, 2);
});

test("a single replica asks nobody and waits for nobody", async () => {
  replicas.A.config.peers = [];
  replicas.A.graceful = true;
  assert.equal((await post(replicas.A, "1")).status, 200);
  redis.away = true;
  assert.equal((await post(replicas.A, "2", { key: "k" })).replica, "A");
  assert.equal((await post(replicas.A, "2", { key: "k" })).replica, "A");
  assert.deepEqual(shown.map(({ before }) => before.length), [0, 1]);
});

test("a client that comes through a balancer is told nothing", async () => {
  const peers = new Peers({ config: {}, metrics: new Metrics(), flush: async () => {}, know: () => ({ replica: "A", known: 1 }) });
  const server = http.createServer((req, res) => peers.handle(req, res));
  await once(server.listen(0, "127.0.0.1"), "listening");
  const ask = async (headers) => {
    const answer = await fetch(`http://127.0.0.1:${server.address().port}/API/v1/peer`, { method: "POST", headers, body: '{"conv":"web:bob"}' });
    return [answer.status, await answer.json()];
  };
  try {
    assert.deepEqual(await ask({}), [200, { replica: "A", known: 1 }]);
    assert.deepEqual(await ask({ "x-forwarded-for": "192.0.2.1" }), [200, { replica: "A", known: 1 }]);
    for (const named of ["203.0.113.7", "192.0.2.1, 203.0.113.7"]) {
      const [status, { error }] = await ask({ "x-forwarded-for": named });
      assert.deepEqual([status, error.code], [404, "not_found"]);
    }
  } finally {
    server.close();
  }
});

test("a host that others trust as a proxy names a client to them, and no other host does", async () => {
  for (const [balancerHost, named] of [
    [true, "192.0.2.1"],
    [false, undefined],
  ]) {
    let seen;
    const peer = http.createServer((req, res) => {
      seen = req.headers["x-forwarded-for"];
      res.writeHead(200).end(JSON.stringify({ replica: "P", redis: false, known: 0, pending: 0, key: false }));
    });
    await once(peer.listen(0, "127.0.0.1"), "listening");
    const peers = new Peers({
      config: { replica: "A", peers: [{ id: "P", url: `http://127.0.0.1:${peer.address().port}` }], peerTimeoutMs: 1000, balancerHost },
      metrics: new Metrics(),
      know: () => ({ replica: "A", redis: false, known: 1, pending: 0, key: false }),
    });
    assert.equal(await peers.answer({ id: "web:bob" }, {}, new AbortController().signal), null);
    assert.equal(seen, named);
    peer.close();
  }
});

test("peers in a file come and go without a restart, and what cannot be read changes nothing", async (t) => {
  const directory = await mkdtemp(join(tmpdir(), "peers-"));
  t.after(() => rm(directory, { recursive: true }));
  const path = join(directory, "peers.json");
  const list = (...names) => JSON.stringify(names.map((id) => ({ id, url: `http://192.0.2.1/${id}` })));
  let now = 0;
  assert.throws(() => peersIn(path, "A"), /ENOENT/);
  await writeFile(path, list("A", "B"));
  const peers = peersIn(path, "A", () => now);
  const names = () => peers().map(({ id }) => id);
  assert.deepEqual(names(), ["B"]);
  await writeFile(path, list("A", "B", "C"));
  assert.deepEqual(names(), ["B"], "not at each use");
  now = 1000;
  assert.deepEqual(names(), ["B", "C"]);
  await writeFile(path, "[{");
  now = 2000;
  assert.deepEqual(names(), ["B", "C"]);
  await rm(path);
  now = 3000;
  assert.deepEqual(names(), ["B", "C"]);
  await writeFile(path, JSON.stringify([{ id: "C", url: "nonsense" }, { id: "B", url: "http://192.0.2.1" }]));
  now = 4000;
  assert.deepEqual(names(), ["B"]);
});

test("the settings name the peers of the file as they are now", async (t) => {
  const directory = await mkdtemp(join(tmpdir(), "peers-"));
  t.after(() => rm(directory, { recursive: true }));
  const path = join(directory, "peers.json");
  await writeFile(path, '[{"id":"A","url":"http://192.0.2.1"},{"id":"B","url":"http://192.0.2.2"}]');
  const config = resolveConfig({ replica: "A", spoolDir: directory, redis: {}, peersFile: path }, {});
  assert.deepEqual(config.peers, [{ id: "B", url: "http://192.0.2.2" }]);
});
