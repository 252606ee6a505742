// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import assert from "node:assert/strict";
import { test } from "node:test";
import { isOutage, Outage, RedisAway } from "../lib/outage.js";

test("everybody waits together: from the first failure on, and once", () => {
  const outage = new Outage(8000);
  assert.equal(outage.failed(1000), false);
  assert.equal(outage.suspected, true);
  assert.equal(outage.failed(8999), false);
  assert.equal(outage.away, false);
  assert.equal(outage.failed(9000), true);
  assert.equal(outage.away, true);
  assert.equal(outage.failed(9500), false, "said once");
  assert.equal(outage.lasted(11000), 10000);
});

test("a short trouble is no outage", () => {
  const outage = new Outage(8000);
  outage.failed(1000);
  assert.equal(outage.succeeded(), false);
  assert.equal(outage.failed(10000), false);
  assert.equal(outage.away, false);
});

test("the end of an outage is said once", () => {
  const outage = new Outage(0);
  assert.equal(outage.failed(1), true);
  assert.equal(outage.succeeded(), true);
  assert.equal(outage.succeeded(), false);
  assert.equal(outage.away, false);
});

test("how long ago the last trouble ended, also one that was no outage", () => {
  const outage = new Outage(8000);
  assert.equal(outage.succeeded(500), false);
  assert.equal(outage.calm(1000), Infinity);
  outage.failed(1000);
  outage.succeeded(2000);
  outage.succeeded(2500);
  assert.equal(outage.calm(3000), 1000);
});

test("what is an outage", () => {
  const reply = (message) => Object.assign(new Error(message), { name: "ReplyError" });
  for (const text of [
    "READONLY You can't write",
    "NOREPLICAS Not enough",
    "LOADING Redis is loading",
    "MASTERDOWN Link",
    "OOM command not allowed",
    "NOAUTH Authentication required.",
    "MISCONF Redis is",
  ]) {
    assert.equal(isOutage(reply(text)), true, text);
  }
  assert.equal(isOutage(reply("WRONGTYPE Operation against a key")), false);
  assert.equal(isOutage(reply("ERR syntax error")), false);
  assert.equal(isOutage(new Error("Command timed out")), true);
  assert.match(new RedisAway(new Error("x")).message, /away: x/);
});
