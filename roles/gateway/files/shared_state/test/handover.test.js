// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import assert from "node:assert/strict";
import fs from "node:fs/promises";
import path from "node:path";
import { DatabaseSync } from "node:sqlite";
import { beforeEach, mock, test } from "node:test";
import { Handover } from "../lib/handover.js";
import { createHooks } from "../lib/hooks.js";
import { handleOwned } from "../lib/owned.js";
import { Queue } from "../lib/queue.js";
import { temporaryDirectory } from "./support/rig.js";

const POLL = "telegram/poll";
const CTX = { channelId: "telegram", accountId: "poll", conversationId: "1" };

let times = 100;
let inFlight, stopTakes, now, pending, sent, calls, account, channels, refuse, handover, hooks, said;

beforeEach(() => {
  globalThis[Symbol.for("openclaw.ha.stopped-accounts")].clear();
  inFlight = false;
  stopTakes = undefined;
  [now, pending, sent, calls, refuse, said] = [1000, [], [], [], false, []];
  account = { accountId: "poll", running: true, lifecycle: "ready", lastStartAt: 10, lastStopAt: 0 };
  channels = { telegram: { enabled: true, accounts: { poll: { enabled: true } } } };
  const queue = { all: (_sql, channel, id) => pending.filter((one) => one === `${channel}/${id}`), close() {} };
  handover = new Handover({ queue, log: { warn: (text) => said.push(text) }, now: () => now });
  hooks = createHooks(async () => ({ handover, inbound: { lost: async () => false, sending() {}, sent() {} } }));
});

/** The gateway's methods, as far as they matter here. */
async function dispatch(method, params) {
  if (method === "channels.status") return { ok: true, payload: { channelAccounts: { telegram: [account] } } };
  calls.push([method, `${params.channel}/${params.accountId}`]);
  if (refuse) return { ok: false, error: { message: "not now" } };
  const on = method === "channels.start";
  if (!on) await stopTakes?.promise;
  if (!on && account.deaf) return { ok: true, payload: { stopped: false } };
  if (on && inFlight) return { ok: true, payload: { outcome: { status: "retry", reason: "stop-in-flight" } } };
  Object.assign(account, { running: on, lifecycle: on ? "ready" : "stopped", [on ? "lastStartAt" : "lastStopAt"]: ++times });
  return { ok: true, payload: on ? { outcome: { status: "handed-off" } } : { stopped: true } };
}

/** The owner's question. */
async function ask(words = `leaving=${POLL}`) {
  const res = { writeHead() {}, end: (text) => (res.body = JSON.parse(text)) };
  await handleOwned({ channels: () => channels, dispatch, handover }, { url: `/api/v1/owned?channels=telegram&${words}` }, res);
  return res.body;
}

/** Send as OpenClaw does. */
async function send(text, to = "telegram:1") {
  const answer = await hooks.message_sending({ to, content: text }, CTX);
  if (!answer?.cancel) sent.push(text);
  return answer;
}
const taken = (to = "telegram:1") => hooks.message_sent({ to, success: true }, CTX);
/** All promises that can go on have done so. */
const quiet = () => new Promise((resolve) => setImmediate(resolve));

test("an account with nothing to do is stopped at once, and counts as off though the configuration has it", async () => {
  assert.deepEqual((await ask("")).on, [POLL]);
  const answer = await ask();
  assert.deepEqual([answer.on, answer.busy, calls], [[], [], [["channels.stop", POLL]]]);
  await ask();
  assert.equal(calls.length, 1);
  // One that says it runs, or may, is on whatever was asked of it.
  account.running = null;
  assert.deepEqual((await ask()).on, [POLL]);
});

test("what is under way is sent first, what comes meanwhile waits until the account is stopped", async () => {
  await send("before");
  await send("too", "telegram:2");
  assert.deepEqual((await ask()).busy, [POLL]);
  const waiting = send("after", "telegram:3");
  await quiet();
  await taken("telegram:2");
  assert.deepEqual([(await ask()).busy, calls, sent], [[POLL], [], ["before", "too"]]);
  await taken("telegram:4");
  assert.deepEqual((await ask()).busy, [POLL], "that was another chat's");
  await taken();
  assert.deepEqual([(await ask()).on, calls.length], [[], 1]);
  await waiting;
  assert.deepEqual(sent, ["before", "too", "after"]);
});

test("what has been taken and not begun is begun first, and nothing waits for that", async () => {
  pending = [POLL];
  assert.deepEqual((await ask()).busy, [POLL]);
  await send("at once");
  assert.deepEqual(sent, ["at once"]);
  pending = [];
  await ask();
  const waiting = send("later", "telegram:2");
  await quiet();
  pending = [POLL];
  await taken();
  assert.deepEqual((await ask()).busy, [POLL]);
  await waiting;
  assert.deepEqual([sent, calls], [["at once", "later"], []]);
  await taken("telegram:2");
  pending = ["telegram/other"];
  assert.deepEqual((await ask()).busy, []);
});

test("after a while it is stopped whatever is under way", async () => {
  pending = [POLL];
  await ask();
  now += 19999;
  await send("never taken");
  assert.deepEqual((await ask()).busy, [POLL]);
  now += 1;
  assert.deepEqual([(await ask()).busy, calls.length], [[], 1]);
});

test("one that its owner keeps is started again when the configuration has it, and what waits is sent", async () => {
  await send("under way");
  await ask();
  const waiting = send("held", "telegram:2");
  await quiet();
  await ask(`keeping=${POLL}`);
  await waiting;
  assert.deepEqual([sent, calls], [["under way", "held"], []]);
  await taken();
  await taken("telegram:2");
  await ask();
  channels.telegram.accounts.poll.enabled = false;
  await ask(`keeping=${POLL}`);
  assert.deepEqual(calls, [["channels.stop", POLL]], "it is not in the configuration");
  channels.telegram.accounts.poll.enabled = true;
  refuse = true;
  await ask(`keeping=${POLL}`);
  refuse = false;
  assert.deepEqual((await ask(`keeping=${POLL}`)).on, [POLL]);
  await ask(`keeping=${POLL}`);
  assert.deepEqual(calls.slice(1), [["channels.start", POLL], ["channels.start", POLL]]);
  assert.deepEqual(said, ["channels.start of telegram/poll failed: not now"]);
});

test("one that was not started before it was stopped is on: the gateway's first start forgets the stop", async () => {
  Object.assign(account, { running: false, lifecycle: "stopped", lastStartAt: null, lastStopAt: null });
  assert.deepEqual((await ask()).on, [POLL]);
});

test("one that runs again is stopped again, and one whose stop is not over is not stopped twice", async () => {
  await ask();
  Object.assign(account, { running: true, lifecycle: "ready", lastStartAt: ++times });
  assert.deepEqual((await ask()).on, [POLL]);
  assert.deepEqual([(await ask()).on, calls.length], [[], 2]);
  // A stop that takes its time.
  Object.assign(account, { running: true, lifecycle: "ready", lastStartAt: ++times });
  await ask("");
  stopTakes = Promise.withResolvers();
  assert.deepEqual((await ask()).on, [POLL]);
  assert.deepEqual((await ask()).on, [POLL]);
  assert.equal(calls.length, 3);
  stopTakes.resolve();
  await quiet();
  assert.deepEqual((await ask()).on, []);
});

test("a stop that came to nothing is tried again", async () => {
  account.deaf = true;
  assert.deepEqual((await ask()).busy, [POLL]);
  assert.deepEqual([(await ask()).on, calls.length], [[POLL], 2]);
});

test("one of which it is not sure that it is stopped is started all the same when its owner keeps it", async () => {
  // Its stop takes too long: the gateway says that it runs, and does not start it any more.
  account.deaf = true;
  await ask();
  Object.assign(account, { deaf: false, running: false, lifecycle: "stopped", lastStopAt: ++times });
  await ask(`keeping=${POLL}`);
  assert.deepEqual([account.running, calls.at(-1)], [true, ["channels.start", POLL]]);
  // The gateway is asked in the moment in which the stop ends, and says that it runs.
  stopTakes = Promise.withResolvers();
  await ask();
  const slow = async (method, params) => {
    const answer = structuredClone(await dispatch(method, params));
    if (method === "channels.status") {
      stopTakes.resolve();
      await quiet();
    }
    return answer;
  };
  await handleOwned({ channels: () => channels, dispatch: slow, handover }, { url: "/api/v1/owned?channels=telegram" }, { writeHead() {}, end() {} });
  assert.deepEqual([account.running, handover.isStopped(POLL)], [false, false]);
  await ask(`keeping=${POLL}`);
  assert.equal(account.running, true);
  await ask(`keeping=${POLL}`);
  assert.equal(calls.filter(([method]) => method === "channels.start").length, 2);
});

test("the rest of what a chat is being sent does not wait", async () => {
  await send("one of two");
  await ask();
  await send("two of two");
  const other = send("another chat's", "telegram:2");
  await quiet();
  assert.deepEqual(sent, ["one of two", "two of two"]);
  handover.stop();
  await other;
});

test("one whose stop is not over is started again later", async () => {
  await ask();
  inFlight = true;
  await ask(`keeping=${POLL}`);
  inFlight = false;
  assert.equal(account.running, false);
  await ask(`keeping=${POLL}`);
  assert.equal(account.running, true);
});

test("a message that is about to be sent counts while its claim is looked at", async () => {
  const { promise, resolve } = Promise.withResolvers();
  const slow = createHooks(async () => ({ handover, inbound: { lost: () => promise, sending() {}, sent() {} } }));
  const sending = slow.message_sending({ to: "telegram:1", content: "a" }, { ...CTX, sessionKey: "s" });
  await quiet();
  assert.deepEqual([(await ask()).busy, calls], [[POLL], []]);
  resolve(true);
  assert.equal((await sending).cancel, true);
  assert.deepEqual((await ask()).busy, []);
});

test("one that cannot be stopped is on", async () => {
  refuse = true;
  const answer = await ask();
  assert.deepEqual([answer.on, answer.busy], [[POLL], [POLL]]);
  assert.deepEqual(said, ["channels.stop of telegram/poll failed: not now"]);
});

test("what the gateway's queue holds is known, and a release without one keeps nothing from being stopped", async () => {
  const stateDir = await temporaryDirectory();
  await fs.mkdir(path.join(stateDir, "state"));
  const database = new DatabaseSync(path.join(stateDir, "state", "openclaw.sqlite"));
  const one = new Handover({ queue: new Queue(stateDir), log: {}, now: () => now });
  database.exec("CREATE TABLE channel_ingress_events (event_id TEXT, channel_id TEXT, account_id TEXT, status TEXT) STRICT");
  for (const [number, name, status] of [[1, "poll", "completed"], [2, "other", "pending"], [3, "poll", "claimed"], [4, "poll", "pending"]])
    database.prepare("INSERT INTO channel_ingress_events VALUES (?, 'telegram', ?, ?)").run(`${number}`, name, status);
  for (const number of [4, 3]) {
    await one.leave(POLL, dispatch);
    assert.deepEqual([one.busy(), calls], [[POLL], []]);
    database.prepare("DELETE FROM channel_ingress_events WHERE event_id = ?").run(`${number}`);
  }
  await one.leave(POLL, dispatch);
  assert.deepEqual(calls, [["channels.stop", POLL]]);
  database.exec("DROP TABLE channel_ingress_events");
  await one.leave("telegram/other", dispatch);
  assert.deepEqual(calls[1], ["channels.stop", "telegram/other"]);
  one.stop();
});

test("without another word from the owner what waits is sent", async () => {
  await send("under way");
  mock.timers.enable({ apis: ["setTimeout"] });
  try {
    await ask();
    const waiting = send("held", "telegram:2");
    mock.timers.tick(7900);
    await ask();
    mock.timers.tick(7900);
    await quiet();
    assert.deepEqual(sent, ["under way"]);
    mock.timers.tick(101);
    await waiting;
    assert.deepEqual([sent, calls, handover.busy()], [["under way", "held"], [], []]);
  } finally {
    mock.timers.reset();
  }
});

test("what is not sent at all does not wait", async () => {
  await send("under way");
  await ask();
  assert.equal((await send("I'm continuing your interrupted request now (the gateway has just restarted).")).cancel, true);
  handover.stop();
});
