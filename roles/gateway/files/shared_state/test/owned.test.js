// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import assert from "node:assert/strict";
import { test } from "node:test";
import { handleOwned, ownedAccounts } from "../lib/owned.js";

const POLL = { enabled: true, accounts: { poll: { enabled: true }, hook: { enabled: true } } };
const STOPPED = { running: false, restartPending: false, lifecycle: "stopped", lastStartAt: 10, lastStopAt: 20 };
const off = (section, ...ids) => ({
  ...section,
  accounts: { ...section.accounts, ...Object.fromEntries(ids.map((id) => [id, { enabled: false }])) },
});
const account = (accountId, more = {}) => ({ accountId, enabled: true, ...STOPPED, ...more });
const on = (configured, channelAccounts, wanted = ["telegram"]) =>
  ownedAccounts(wanted, configured, { channelAccounts }).on;

/** @returns {Promise<{status: number, body: object}>} */
async function ask(query, { configured = { telegram: POLL }, dispatch }) {
  const res = {
    writeHead(status) {
      this.status = status;
    },
    end(text) {
      this.body = JSON.parse(text);
    },
  };
  await handleOwned({ channels: () => configured, dispatch, handover: { isStopped: () => false, runs() {}, busy: () => [] } }, { url: `/api/v1/owned${query}` }, res);
  return { status: res.status, body: res.body };
}
const answering = (channelAccounts, more) => async () => ({ ok: true, payload: { channelAccounts, ...more } });

test("an account is let go only when it does not run, will not be restarted and is disabled", () => {
  const disabled = { telegram: off(POLL, "poll", "hook") };
  const of = (more) => on(disabled, { telegram: [account("poll", more)] });
  assert.deepEqual(of({}), []);
  assert.deepEqual(of({ running: true }), ["telegram/poll"], "disabled, but running still");
  assert.deepEqual(of({ running: undefined }), ["telegram/poll"], "nobody knows");
  assert.deepEqual(of({ restartPending: true }), ["telegram/poll"]);
  assert.deepEqual(of({ connected: true }), ["telegram/poll"]);
  // The gateway calls everything that is disabled "not running", also while it is stopping it, or cannot.
  for (const lifecycle of ["ready", "starting", "recovering", "blocked"]) {
    assert.deepEqual(of({ lifecycle }), ["telegram/poll"]);
  }
  assert.deepEqual(of({ lastStartAt: 30 }), ["telegram/poll"], "its latest start was not followed by a stop");
  assert.deepEqual(of({ lifecycle: undefined, lastStopAt: null }), ["telegram/poll"]);
  // Never started by this process.
  assert.deepEqual(of({ lifecycle: undefined, lastStartAt: null, lastStopAt: null }), []);
  assert.deepEqual(of({ lastStartAt: null, lastStopAt: null }), []);
  assert.deepEqual(of({ lifecycle: undefined, lastStartAt: undefined, lastStopAt: undefined }), []);
});

test("what the configuration enables is not let go, running or not", () => {
  const both = [account("poll"), account("hook")];
  assert.deepEqual(on({ telegram: POLL }, { telegram: both }), ["telegram/hook", "telegram/poll"]);
  assert.deepEqual(on({ telegram: off(POLL, "poll") }, { telegram: both }), ["telegram/hook"]);
  assert.deepEqual(on({ telegram: { ...POLL, enabled: false } }, { telegram: both }), []);
  assert.deepEqual(on({ telegram: { accounts: { hook: {} } } }, { telegram: both }), ["telegram/hook"]);
  assert.deepEqual(on({ telegram: POLL }, { telegram: [] }), ["telegram/hook", "telegram/poll"], "not reported");
  assert.deepEqual(on({ telegram: POLL }, {}), ["telegram/hook", "telegram/poll"]);
  assert.deepEqual(on({}, { telegram: both }), []);
  assert.deepEqual(on({}, { telegram: [account("poll", { running: true })] }), ["telegram/poll"]);
});

test("a channel without a list of accounts is its own account", () => {
  const one = { telegram: [account("default")] };
  assert.deepEqual(on({ telegram: {} }, one), ["telegram/default"]);
  assert.deepEqual(on({ telegram: { enabled: false } }, one), []);
  const beside = { telegram: off(POLL, "poll", "hook") };
  assert.deepEqual(on(beside, one), ["telegram/default"], "its settings may be the channel's");
  assert.deepEqual(on(beside, { telegram: [account("default", { configured: false })] }), []);
});

test("the answer names the process, the accounts that are on, and what is known of all", async () => {
  const dispatch = answering({
    telegram: [account("poll", { running: true, connected: true, lifecycle: "ready" }), account("hook")],
    whatsapp: [account("default", { stateReason: "not linked" })],
    discord: [account("default", { running: true })],
  });
  const configured = { defaults: {}, telegram: off(POLL, "hook"), whatsapp: { enabled: false } };
  const some = await ask("?channels=telegram,whatsapp", { configured, dispatch });
  assert.equal(some.status, 200);
  assert.deepEqual(some.body, {
    pid: process.pid,
    on: ["telegram/poll"],
    accounts: {
      "telegram/poll": { running: true, connected: true, lifecycle: "ready", reason: null },
      "telegram/hook": { running: false, connected: null, lifecycle: "stopped", reason: null },
      "whatsapp/default": { running: false, connected: null, lifecycle: "stopped", reason: "not linked" },
    },
    busy: [],
  });
  const all = await ask("", { configured, dispatch });
  assert.deepEqual(all.body.on, ["discord/default", "telegram/poll"], "also one that is configured no more");
});

test("when the gateway does not say, the answer is an error and no list", async () => {
  const failing = [
    async () => {
      throw new Error("scope upgrade");
    },
    async () => ({ ok: false, error: { message: "unavailable" } }),
    async () => ({ ok: true, payload: {} }),
    async () => undefined,
    answering({ telegram: [] }, { partial: true, warnings: ["telegram:poll status failed: boom"] }),
    answering({ telegram: [] }, { partial: true }),
  ];
  for (const dispatch of failing) {
    const { status, body } = await ask("?channels=telegram", { configured: {}, dispatch });
    assert.equal(status, 503);
    assert.equal(body.error.code, "channels_unknown");
    assert.equal("on" in body, false);
  }
  const summary = answering({}, { partial: true, warnings: ["whatsapp summary timed out after 1000ms"] });
  assert.deepEqual((await ask("", { configured: {}, dispatch: summary })).body.on, []);
});
