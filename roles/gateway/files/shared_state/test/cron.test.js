// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import assert from "node:assert/strict";
import { after, before, beforeEach, test } from "node:test";
import { resolveConfig } from "../lib/config.js";
import { Cron, slotOf } from "../lib/cron.js";
import { createHooks } from "../lib/hooks.js";
import { parseSessionKey } from "../lib/keys.js";
import { Metrics } from "../lib/metrics.js";
import { RedisAway } from "../lib/outage.js";
import { Store } from "../lib/store.js";
import { startRedis } from "./support/redis.js";

const MINUTE = 60000;
const T0 = Math.floor(Date.now() / MINUTE) * MINUTE - 60 * MINUTE;
const DAILY = { key: "daily", name: "Daily report", expr: "* * * * *", tz: "UTC", message: "report" };
const FOREIGN = { id: "theirs", name: "reminder", enabled: true, schedule: { kind: "cron", expr: "* * * * *" } };

let redis;
before(async () => {
  redis = await startRedis();
});
beforeEach(() => redis.client.flushall());
after(() => redis.stop());

/** The scheduler of one gateway. */
class FakeCron {
  jobs = [{ ...FOREIGN, state: {} }];
  calls = [];
  broken = false;
  async list() {
    if (this.broken) throw new Error("scheduler replaced");
    return structuredClone(this.jobs);
  }
  async add(input) {
    this.calls.push(`add ${input.declarationKey}`);
    const present = this.jobs.find(({ declarationKey }) => declarationKey === input.declarationKey);
    if (present) return Object.assign(present, { ...input, enabled: present.enabled });
    const job = { id: `job-${Math.random()}`, ...input, state: {} };
    this.jobs.push(job);
    return job;
  }
  async update(id, patch) {
    this.calls.push(`update ${id} ${JSON.stringify(patch)}`);
    Object.assign(this.jobs.find((job) => job.id === id), patch);
  }
  async remove(id) {
    this.calls.push(`remove ${id}`);
    this.jobs = this.jobs.filter((job) => job.id !== id);
  }
  of(key) {
    return this.jobs.find(({ declarationKey }) => declarationKey === `ha:${key}`);
  }
}

/** A gateway's process with the plugin in it. */
async function replica(name, { jobs = [DAILY], turnTimeoutSeconds = 120, gateway = new FakeCron(), scheduler } = {}) {
  const config = { keyPrefix: "oc:", replica: name, jobs, turnTimeoutSeconds, waitReplicas: 0, waitTimeoutMs: 10 };
  const metrics = new Metrics();
  const said = [];
  const log = Object.fromEntries(["info", "warn", "error"].map((level) => [level, (text) => said.push(text)]));
  const one = { name, gateway, metrics, said, away: false };
  const link = {
    run: (operation) => {
      if (one.away) throw new RedisAway();
      return operation(redis.client);
    },
  };
  one.scheduler = scheduler ?? { getCron: null, ids: null, held: new Map() };
  one.cron = new Cron({ config, store: new Store({ config, link, metrics }), log, metrics, scheduler: one.scheduler });
  one.hooks = createHooks(async () => one);
  await one.cron.start(() => gateway);
  one.count = (counter) => metrics.get(`cron_${counter}`);
  /** The gateway comes to run a job. @returns {Promise<boolean>} does it run here? */
  one.tick = async (slot, { key = "daily", id = gateway.of(key)?.id, state = {} } = {}) => {
    const job = gateway.jobs.find((other) => other.id === id);
    if (job) job.state = { nextRunAtMs: slot, ...state };
    const ctx = { trigger: "cron", jobId: id, runId: "run", sessionKey: `agent:main:cron:${id}:run:1` };
    return (await one.hooks.before_agent_reply({}, ctx))?.handled !== true;
  };
  one.end = (nextRunAtMs, { key = "daily", status = "ok" } = {}) => {
    const job = gateway.of(key);
    return one.hooks.cron_changed({ action: "finished", jobId: job.id, job, status, nextRunAtMs });
  };
  return one;
}
const cluster = async (...names) => Promise.all(names.map((name) => replica(name)));
const claimOf = async (slot, key = "daily") => JSON.parse(await redis.client.get(`oc:cron:${key}:${slot}`));
const events = async () =>
  (await redis.client.xrange("oc:events", "-", "+")).map(([, fields]) => ({
    type: fields[1],
    replica: fields[5],
    detail: JSON.parse(fields[7]),
  }));

test("a slot is run by one replica, also when all tick at once", async () => {
  const all = await cluster("A", "B", "C");
  for (let slot = T0; slot < T0 + 5 * MINUTE; slot += MINUTE) {
    const ran = await Promise.all(all.map((one) => one.tick(slot)));
    assert.equal(ran.filter(Boolean).length, 1);
    const owner = all[ran.indexOf(true)];
    const { owner: named, state, at, until: ends } = await claimOf(slot);
    assert.deepEqual([named, state], [owner.name, "running"]);
    assert.equal(ends - at, 180000);
    for (const one of all) await one.end(slot + MINUTE);
    assert.deepEqual(await claimOf(slot).then(({ state: now, ok }) => [now, ok]), ["done", true]);
  }
  const sum = (counter) => all.reduce((total, one) => total + one.count(counter), 0);
  assert.deepEqual([sum("claimed"), sum("skipped"), sum("missed"), sum("unfinished")], [5, 10, 0, 0]);
  assert.deepEqual(await events(), []);
  assert.equal(await redis.client.zcard("oc:cron:daily:open"), 0);
  for (const key of await redis.client.keys("oc:cron:*")) assert.ok((await redis.client.ttl(key)) > 0, key);
});

test("a failed run is over too", async () => {
  const [a, b] = await cluster("A", "B");
  await a.tick(T0);
  await a.end(T0 + MINUTE, { status: "error" });
  assert.deepEqual(await claimOf(T0).then(({ state, ok }) => [state, ok]), ["done", false]);
  assert.equal(await redis.client.hget("oc:cron:daily", "state"), "failed");
  assert.equal(await b.tick(T0), false);
});

test("the end of a run says nothing of a slot that a failover gave to another one", async () => {
  const [a] = await cluster("A");
  await a.tick(T0);
  const other = JSON.stringify({ state: "running", owner: "B", run: "other" });
  await redis.client.set(`oc:cron:daily:${T0}`, other);
  await a.end(T0 + MINUTE);
  assert.deepEqual(await claimOf(T0), JSON.parse(other));
});

test("an old slot is not run again, even when its claim is forgotten", async () => {
  const [a, b] = await cluster("A", "B");
  await a.tick(T0 + MINUTE);
  await redis.client.del(`oc:cron:daily:${T0 + MINUTE}`);
  assert.equal(await b.tick(T0 + MINUTE), false);
  assert.equal(await b.tick(T0), false);
});

test("asked again about the run that it has, a replica goes on", async () => {
  const [a] = await cluster("A");
  assert.deepEqual([await a.tick(T0), await a.tick(T0)], [true, true]);
  assert.equal(a.count("claimed"), 1);
});

test("without Redis nobody runs; afterwards it is told once what was missed", async () => {
  const [a, b] = await cluster("A", "B");
  a.away = b.away = true;
  assert.deepEqual([await a.tick(T0), await b.tick(T0)], [false, false]);
  assert.deepEqual([a.count("skipped_redis_away"), b.count("skipped_redis_away")], [1, 1]);
  a.away = b.away = false;
  const ran = [await a.tick(T0 + MINUTE), await b.tick(T0 + MINUTE)];
  assert.deepEqual(ran, [true, false]);
  assert.deepEqual(await events(), [{ type: "cron_missed", replica: "A", detail: { job: "daily", slot: T0 } }]);
  assert.equal(a.count("missed") + b.count("missed"), 1);
});

test("what one replica missed and another ran was not missed", async () => {
  const [a, b] = await cluster("A", "B");
  a.away = true;
  assert.deepEqual([await a.tick(T0), await b.tick(T0)], [false, true]);
  a.away = false;
  await a.tick(T0 + MINUTE);
  assert.deepEqual(await events(), []);
});

test("slots that passed while all were down are told of from what Redis knows was next", async () => {
  const [a] = await cluster("A");
  await a.tick(T0);
  await a.end(T0 + MINUTE);
  const [again, b] = await cluster("A", "B");
  assert.deepEqual([await again.tick(T0 + 9 * MINUTE), await b.tick(T0 + 9 * MINUTE)], [true, false]);
  assert.deepEqual(await events(), [{ type: "cron_missed", replica: "A", detail: { job: "daily", slot: T0 + MINUTE } }]);
  // Another schedule has no such next slot.
  await again.end(T0 + 10 * MINUTE);
  const changed = await replica("A", { jobs: [{ ...DAILY, expr: "*/20 * * * *" }] });
  await changed.tick(T0 + 20 * MINUTE);
  assert.equal((await events()).length, 1);
});

test("a run whose replica died is told of once, and run by nobody else", async () => {
  const [a, b, c] = await cluster("A", "B", "C");
  await a.tick(T0);
  // Before its time is over nobody says so.
  await b.tick(T0 + MINUTE);
  await b.end(T0 + 2 * MINUTE);
  assert.deepEqual(await events(), []);
  await redis.client.zadd("oc:cron:daily:open", Date.now() - 1, String(T0));
  await Promise.all([b.tick(T0 + 2 * MINUTE), c.tick(T0 + 2 * MINUTE)]);
  assert.equal(await c.tick(T0), false);
  const [only, ...more] = await events();
  assert.deepEqual([only.type, only.detail, more], ["cron_unfinished", { job: "daily", slot: T0, owner: "A" }, []]);
  assert.equal(b.count("unfinished") + c.count("unfinished"), 1);
  assert.equal((await claimOf(T0)).state, "unfinished");
});

test("a run that ends after all is done, and so is one that ended while Redis was away", async () => {
  const [a] = await cluster("A");
  await a.tick(T0);
  await redis.client.zadd("oc:cron:daily:open", Date.now() - 1, String(T0));
  a.away = true;
  await a.end(T0 + MINUTE);
  a.away = false;
  assert.equal((await claimOf(T0)).state, "running");
  await a.cron.tell();
  assert.equal((await claimOf(T0)).state, "done");
  await a.tick(T0 + MINUTE);
  assert.deepEqual(await events(), []);
});

test("the end of a run is told also by a runtime that replaced the one that began it", async () => {
  const [a] = await cluster("A");
  await a.tick(T0);
  const next = await replica("A", { gateway: a.gateway, scheduler: a.scheduler });
  await next.end(T0 + MINUTE);
  assert.equal((await claimOf(T0)).state, "done");
  // One that crashed has nothing to tell of what it ran before.
  await next.tick(T0 + MINUTE);
  const crashed = await replica("A", { gateway: a.gateway });
  await crashed.end(T0 + 2 * MINUTE);
  assert.equal((await claimOf(T0 + MINUTE)).state, "running");
});

test("runs outside of the schedule are left out: catching up, trying again, by hand", async () => {
  const [a] = await cluster("A");
  assert.equal(await a.tick(T0, { state: { startupCatchupAtMs: T0 } }), false);
  assert.equal(await a.tick(T0 + 30123), false);
  assert.equal(await a.tick(undefined), false);
  assert.equal(await a.tick(Date.now() + 10 * MINUTE), false);
  assert.equal(a.count("unscheduled"), 4);
  assert.deepEqual(await redis.client.keys("*"), []);
  const at = (expr, nextRunAtMs) => slotOf({ schedule: { expr }, state: { nextRunAtMs } });
  assert.equal(at("* * * * * *", T0 + 5000), T0 + 5000);
  assert.equal(at("* * * * *", T0 + 5000), null);
});

test("jobs of others are left alone", async () => {
  const [a] = await cluster("A");
  a.away = true;
  assert.equal(await a.tick(T0, { id: "theirs" }), true);
  a.gateway.broken = true;
  assert.equal(await a.tick(T0, { id: "theirs" }), true);
  assert.equal(await a.hooks.before_agent_reply({}, { trigger: "user", sessionKey: "agent:main:main" }), undefined);
  await a.hooks.cron_changed({ action: "finished", jobId: "theirs", status: "ok" });
  assert.deepEqual(await redis.client.keys("*"), []);
});

test("when nothing can be said of a job, ours are not run", async () => {
  const [a] = await cluster("A");
  a.gateway.broken = true;
  assert.equal(await a.tick(T0), false);
  const gateway = new FakeCron();
  gateway.broken = true;
  const unknown = await replica("B", { gateway });
  assert.equal(await unknown.tick(T0, { id: "any" }), false);
  unknown.cron.stop();
  const none = await replica("C", { gateway, jobs: [] });
  assert.equal(await none.tick(T0, { id: "any" }), true);
  none.cron.stop();
  const lost = createHooks(async () => {
    throw new Error("no runtime");
  });
  assert.deepEqual(await lost.before_agent_reply({}, { trigger: "cron", jobId: "x" }), { handled: true });
});

test("the scheduler gets the declared jobs, and gets them again without a change", async () => {
  const weekly = { ...DAILY, key: "weekly", delivery: { mode: "announce", channel: "telegram", to: "1" } };
  const { gateway, cron } = await replica("A", { jobs: [DAILY, weekly] });
  assert.deepEqual(gateway.of("daily"), {
    id: gateway.of("daily").id,
    declarationKey: "ha:daily",
    name: "Daily report",
    enabled: true,
    schedule: { kind: "cron", expr: "* * * * *", tz: "UTC", staggerMs: 0 },
    sessionTarget: "isolated",
    wakeMode: "now",
    payload: { kind: "agentTurn", message: "report", timeoutSeconds: 120 },
    delivery: { mode: "none" },
    state: {},
  });
  assert.deepEqual(gateway.of("weekly").delivery, weekly.delivery);
  const before = structuredClone(gateway.jobs);
  await Promise.all([cron.reconcile(), cron.reconcile()]);
  assert.deepEqual(gateway.jobs, before);
  assert.equal(gateway.calls.some((call) => !call.startsWith("add")), false);
});

test("a job that is declared no more is removed, one that was given up is enabled, others are not touched", async () => {
  const { gateway } = await replica("A", { jobs: [DAILY, { ...DAILY, key: "weekly" }] });
  gateway.of("daily").enabled = false;
  await replica("A", { gateway });
  assert.equal(gateway.of("weekly"), undefined);
  assert.equal(gateway.of("daily").enabled, true);
  assert.deepEqual(gateway.jobs.find(({ id }) => id === "theirs"), { ...FOREIGN, state: {} });
  await replica("A", { gateway, jobs: [] });
  assert.deepEqual(gateway.jobs.map(({ id }) => id), ["theirs"]);
});

test("a scheduler that refuses is said, and set up when it is there", async () => {
  const gateway = new FakeCron();
  gateway.broken = true;
  const a = await replica("A", { gateway });
  assert.equal(a.count("reconcile_errors"), 1);
  assert.match(a.said[0], /could not be set up/);
  gateway.broken = false;
  await a.hooks.cron_reconciled({ reason: "startup", enabled: true }, {});
  assert.equal(gateway.of("daily").name, "Daily report");
  a.cron.stop();
});

test("the health route counts; a cron session is no conversation", async () => {
  const [a, b] = await cluster("A", "B");
  await a.tick(T0);
  await b.tick(T0);
  const none = { skipped_redis_away: 0, unfinished: 0, missed: 0 };
  assert.deepEqual(a.cron.health(), { jobs: 1, claimed: 1, skipped: 0, ...none });
  assert.deepEqual(b.cron.health(), { jobs: 1, claimed: 0, skipped: 1, ...none });
  assert.equal(parseSessionKey("agent:main:cron:1-2-3:run:4"), null);
});

test("two jobs cannot have the same key", () => {
  const given = { replica: "A", spoolDir: "/", redis: {}, jobs: [DAILY, { ...DAILY, name: "other" }] };
  assert.throws(() => resolveConfig(given, {}), /two of the "jobs" have the key "daily"/);
});
