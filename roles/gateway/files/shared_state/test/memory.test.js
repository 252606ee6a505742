// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

// A full memory: who makes room, and in a real Redis what goes and what stays.

import assert from "node:assert/strict";
import { after, before, beforeEach, test } from "node:test";
import { DEFAULTS } from "../lib/config.js";
import { redisKeys } from "../lib/keys.js";
import { Link } from "../lib/link.js";
import { ConversationLock } from "../lib/lock.js";
import { Memory } from "../lib/memory.js";
import { Metrics } from "../lib/metrics.js";
import { Store } from "../lib/store.js";
import { startRedis, until } from "./support/redis.js";

const ROOM = { used: 50, max: 100, dropped: 0, freed: 0, passed: 0, more: false };
const HOUR_MS = 3600000;
const names = redisKeys("oc:");
const convOf = (user) => ({ channel: "web", user, id: `web:${user}` });

/** A Memory whose Redis gives these answers. */
function make(answers) {
  const [said, asked, told] = [[], [], []];
  const metrics = new Metrics();
  const store = {
    async makeRoom(options) {
      asked.push(options);
      const answer = answers.shift();
      if (answer instanceof Error) throw answer;
      return { ...ROOM, ...answer };
    },
    async tellDropped(...args) {
      told.push(args);
    },
  };
  const log = { warn: (text) => said.push(text), error: (text) => said.push(`error: ${text}`) };
  return { memory: new Memory({ store, log, metrics }), said, asked, told, metrics };
}

// Room is made until 80 % are used, and buffers of connections, 0.9 % each here, come and go.
const LEAST = 0.765;

test("with room enough nothing is done and nothing said", async () => {
  const { memory, said, asked, told } = make([{ used: 85 }, { used: 500, max: 0 }]);
  await memory.look();
  await memory.look();
  assert.deepEqual([asked.length, said, told], [2, [], []]);
  assert.deepEqual([asked[0].above, asked[0].until, asked[0].idleMs, asked[0].skip], [85, 80, 60000, 0]);
});

test("a round goes on in batches until there is enough, behind what is locked, and is told of once", async () => {
  const { memory, said, asked, told, metrics } = make([
    { used: 90, dropped: 47, freed: 1048576, passed: 3, more: true },
    { used: 84, dropped: 48, freed: 1048576, passed: 2, more: true },
    { used: 80, dropped: 5, freed: 524288 },
  ]);
  await memory.look();
  assert.deepEqual(
    asked.map(({ above, skip }) => [above, skip]),
    [
      [85, 0],
      [80, 3],
      [80, 5],
    ],
  );
  assert.equal(said.length, 1);
  assert.match(said[0], /conversations_dropped conversations=100 freed_mb=2\.5 /);
  assert.deepEqual(told, [[100, 2621440]]);
  assert.equal(metrics.get("conversations_dropped"), 100);
});

test("a memory that stays full is complained of once, and again when it was not full in between", async () => {
  const full = { used: 95 };
  const { memory, said } = make([full, full, { used: 70 }, full]);
  for (let look = 0; look < 2; look += 1) await memory.look();
  assert.equal(said.length, 1);
  assert.match(said[0], /no conversation that can be dropped was idle for 60 s.*redis_maxmemory/);
  for (let look = 0; look < 2; look += 1) await memory.look();
  assert.equal(said.length, 2);
});

test("what was dropped before Redis went away is told all the same; the outage is not its business", async () => {
  const broken = Object.assign(new Error("ERR no such thing"), { name: "ReplyError" });
  const { memory, said, metrics } = make([{ dropped: 2, more: true }, new Error("Connection is closed."), broken]);
  await memory.look();
  assert.equal(metrics.get("conversations_dropped"), 2);
  assert.equal(said.length, 1);
  await memory.look();
  assert.match(said[1], /^error: .*ERR no such thing/);
});

test("refused turns ask for one look, and where it does not help not for one each", async () => {
  const { memory, asked } = make([{ used: 95 }, { used: 95 }]);
  for (let turn = 0; turn < 5; turn += 1) memory.full();
  await memory.look();
  for (let turn = 0; turn < 5; turn += 1) memory.full();
  assert.equal(asked.length, 1);
});

let server;
let client;
before(async () => {
  server = await startRedis();
  client = server.client;
  await client.config("SET", "maxmemory-policy", "noeviction");
});
beforeEach(async () => {
  await client.config("SET", "maxmemory", "0");
  await client.flushall();
});
after(() => server.stop());

/** Leaves room for about so many bytes. */
async function limit(bytes) {
  const used = Number(/\nused_memory:(\d+)/.exec(await client.info("memory"))[1]);
  await client.config("SET", "maxmemory", String(used + bytes));
}

/** One replica with a real connection. */
async function replica(t, options = {}) {
  const config = { ...DEFAULTS, replica: "A", waitReplicas: 0, outageWaitMs: 3000 };
  const [said, metrics] = [[], new Metrics()];
  const log = { info() {}, warn: (text) => said.push(text), error: (text) => said.push(`error: ${text}`) };
  const link = new Link({
    config,
    log,
    metrics,
    heartbeatKey: names.metrics("A"),
    connect: server.connect,
    onBack() {},
    onFull: () => found.memory.full(),
  });
  const store = new Store({ config, link, metrics });
  const memory = new Memory({ store, log, metrics, ...options });
  t.after(() => link.stop());
  await until(() => link.healthy);
  const found = { config, link, log, store, memory, said, metrics };
  return found;
}

let turns = 0;
/** One turn, as a gateway does it. */
async function say({ store, config }, user, options = {}, words = 200) {
  const conv = convOf(user);
  const lock = new ConversationLock(store, config, conv);
  const view = await lock.acquire({ waitMs: 100, ...options });
  turns += 1;
  const turn = { id: `turn-${turns}`, at: Date.now(), messages: [{ role: "user", content: `${user} `.repeat(words) }] };
  const idempotency = { key: `key-${user}-${view.seq}`, answer: { state: "done", reply: "x" } };
  const record = { conv, owner: lock.owner, base: view.seq, epoch: view.epoch, turn, idempotency };
  const committed = await store.commit(record, { mode: "next", ...options });
  lock.forget();
  return { view, ...committed };
}

/** Makes the conversations older than they are, in their order. */
async function age(ms) {
  const all = await client.zrange("oc:idle", 0, -1, "WITHSCORES");
  for (let i = 0; i < all.length; i += 2) await client.zadd("oc:idle", Number(all[i + 1]) - ms + i, all[i]);
}
const count = async (kind) => (await client.keys(`oc:${kind}:*`)).length;

test("the index knows each conversation with a history, and when it was used last", async (t) => {
  const r = await replica(t);
  const { store } = r;
  await say(r, "a");
  await say(r, "b");
  const [, , , last] = await client.zrange("oc:idle", 0, -1, "WITHSCORES");
  assert.ok(Math.abs(Number(last) - Date.now()) < 60000);
  assert.equal(await client.pttl("oc:idle"), -1);
  await age(HOUR_MS);
  await say(r, "a");
  assert.deepEqual(await client.zrange("oc:idle", 0, -1), ["web:b", "web:a"]);
  await store.compact(convOf("a"), 1);
  assert.deepEqual(await client.zrange("oc:idle", 0, -1), ["web:b", "web:a"]);
  await store.compact(convOf("a"), 0);
  await store.reset(convOf("b"));
  assert.deepEqual(await client.zrange("oc:idle", 0, -1), []);
  // What has expired leaves the index with the next turn of anybody.
  await say(r, "c");
  await age(DEFAULTS.conversationTtlSeconds * 1000 + HOUR_MS);
  await say(r, "d");
  assert.deepEqual(await client.zrange("oc:idle", 0, -1), ["web:d"]);
});

test("full: the longest idle histories go, and nothing else", async (t) => {
  const r = await replica(t);
  const { store, memory, said, metrics, config } = r;
  const held = new ConversationLock(store, config, convOf("u0"));
  await limit(3_000_000);
  let users = 0;
  try {
    for (; users < 3000; users += 1) {
      await say(r, `u${users}`, { once: true });
      if (users % 10 === 0) await store.claim(names.dedupe(["web", `m${users}`]), "A", 600000);
    }
  } catch (error) {
    assert.match(error.message, /away: OOM/);
  }
  await memory.look(); // the one that the refusal has begun
  assert.ok(users > 200 && users < 3000, String(users));
  assert.equal(await count("conv"), await count("session"), "nothing that was used within the last minute is dropped");
  assert.match(said.find((text) => /no conversation that can be dropped/.test(text)), /idle for 60 s/);

  await client.config("SET", "maxmemory", "0");
  await age(HOUR_MS);
  await held.acquire({ waitMs: 0 });
  await client.config("SET", "maxmemory", "1");
  await assert.rejects(say(r, "new", { once: true }), /OOM/);
  const rest = ["session", "seen", "lock", "idem", "dedupe"];
  const numbers = async () => Promise.all(rest.map(count));
  const had = await numbers();
  const used = Number(/\nused_memory:(\d+)/.exec(await client.info("memory"))[1]);
  await client.config("SET", "maxmemory", String(used - 1000));
  await memory.look();

  const left = await count("conv");
  const dropped = users - left;
  assert.ok(dropped > 20 && left > 20, `${dropped} of ${users} dropped`);
  assert.deepEqual(await numbers(), had, rest.join());
  const gone = [...Array(users).keys()].filter((n) => n > 0 && n <= dropped);
  assert.equal(await client.exists(...gone.map((n) => `oc:conv:web:u${n}`)), 0, "the oldest");
  assert.equal(await client.exists("oc:conv:web:u0"), 1, "locked");
  for (let n = dropped + 1; n < users; n += 1) assert.equal(await client.llen(`oc:conv:web:u${n}`), 1, `u${n}`);
  assert.equal(await client.zcard("oc:idle"), left);
  const after = await client.info("memory");
  const [now, max] = ["used_memory", "maxmemory"].map((name) => Number(new RegExp(`\n${name}:(\\d+)`).exec(after)[1]));
  assert.ok(now < max * 0.82 && now > max * LEAST, `${now} of ${max}`);
  assert.ok(said.some((text) => text.includes(`conversations_dropped conversations=${dropped} `)));
  assert.equal(metrics.get("conversations_dropped"), dropped);
  const [[, fields]] = await client.xrange("oc:events", "-", "+");
  assert.deepEqual([fields[1], fields[5]], ["conversations_dropped", "A"]);
  const detail = JSON.parse(fields[7]);
  assert.equal(detail.conversations, dropped);
  assert.ok(detail.bytes > dropped * 1000 && detail.bytes < dropped * 2000, fields[7]);
  await held.release();

  // A dropped conversation goes on: empty, numbered onward, its old turns still known.
  assert.equal(await client.hget("oc:session:web:u1", "dropped"), "1");
  const next = await say(r, "u1");
  assert.deepEqual([next.view.turns, next.view.seq, next.status, next.seq], [[], 1, "committed", 2]);
  const { turns: seen, seq } = await store.read(convOf("u1"));
  assert.deepEqual([seen.map((turn) => turn.seq), seq], [[2], 2]);
  const [again] = await client.zrange("oc:seen:web:u1", 0, 0);
  const repeated = { conv: convOf("u1"), owner: "x", base: 0, epoch: 0, turn: { id: again, at: 1, messages: [] } };
  assert.equal((await store.commit(repeated, { mode: "next" })).status, "duplicate");
  // The look of another replica finds enough room.
  await (await replica(t)).memory.look();
  assert.equal(await count("conv"), left + 1);
});

test("turns go on in a memory that is full: a refusal makes room, and the turn is tried again", async (t) => {
  const r = await replica(t, { idleMs: 0 });
  const { link, said, metrics } = r;
  await client.config("SET", "maxmemory", "0");
  await say(r, "keeper");
  await limit(1_200_000);
  for (let number = 0; number < 900; number += 1) {
    const { status } = await say(r, `v${number}`);
    assert.equal(status, "committed");
  }
  assert.ok(metrics.get("conversations_dropped") > 100, String(metrics.get("conversations_dropped")));
  assert.equal(await client.exists("oc:conv:web:keeper"), 0);
  assert.equal(await client.exists("oc:conv:web:v899"), 1);
  assert.equal(await count("session"), 901);
  assert.equal(link.away, false);
  assert.ok(said.every((text) => /conversations_dropped/.test(text)), said.join("\n"));
});

test("several replicas at once drop what one would", async (t) => {
  const all = await Promise.all(Array.from({ length: 4 }, () => replica(t, { idleMs: 0 })));
  for (let number = 0; number < 300; number += 1) await say(all[0], `w${number}`, {}, 2000);
  await limit(-1000);
  await Promise.all(all.map(({ memory }) => memory.look()));
  const info = await client.info("memory");
  const [used, max] = ["used_memory", "maxmemory"].map((name) => Number(new RegExp(`\n${name}:(\\d+)`).exec(info)[1]));
  assert.ok(used > max * LEAST && used < max * 0.85, `${used} of ${max}`);
  const sum = all.reduce((total, { metrics }) => total + metrics.get("conversations_dropped"), 0);
  assert.equal(sum, 300 - (await count("conv")));
  assert.ok(sum > 30 && sum < 200, String(sum));
});

test("a refused probe, a transaction, is an outage by want of memory, which only a write ends", async (t) => {
  const r = await replica(t);
  await client.config("SET", "maxmemory", "1");
  const probe = (c) => c.multi().hset("k", "a", "b").exec();
  await assert.rejects(r.link.run(probe, { once: true }), /away: OOM/);
  await r.memory.look();
  await r.store.read(convOf("a"));
  await r.store.renew(convOf("a"), "o");
  assert.equal(r.link.healthy, false);
  await client.config("SET", "maxmemory", "0");
  await r.link.run(probe, { once: true, writes: true });
  assert.equal(r.link.healthy, true);
});
