// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import assert from "node:assert/strict";
import { test } from "node:test";
import { Limiter, limitsFor, take } from "../lib/limits.js";
import { Metrics } from "../lib/metrics.js";
import { RedisAway } from "../lib/outage.js";

const BOB = { channel: "web", user: "bob", id: "web:bob" };
const LIMIT = [{ name: "all", perMinute: 60, burst: 3 }];

/** @returns waits of requests at these times (ms) */
function waits(limits, times) {
  let buckets = [];
  return times.map((now) => {
    const taken = take(buckets, limits, now);
    buckets = taken.buckets;
    return taken.waitMs;
  });
}

test("a burst, then the rate", () => {
  assert.deepEqual(waits(LIMIT, [0, 0, 0, 0, 400, 1000, 1000, 2000]), [0, 0, 0, 1000, 600, 0, 1000, 0]);
});

test("a pause fills the bucket up to its burst and no further", () => {
  assert.deepEqual(waits(LIMIT, [0, 0, 0, 60000, 60000, 60000, 60000]), [0, 0, 0, 0, 0, 0, 1000]);
});

test("a clock that goes back takes nothing away and adds nothing", () => {
  assert.deepEqual(waits(LIMIT, [5000, 5000, 4000, 4000]), [0, 0, 0, 1000]);
});

test("a request that one bucket refuses costs no token of the others", () => {
  const limits = [...LIMIT, { name: "key:web:bob", perMinute: 30, burst: 1 }];
  assert.deepEqual(waits(limits, [0, 0, 0, 0]), [0, 2000, 2000, 2000]);
  const { buckets } = take([{ tokens: 3, at: 0 }, { tokens: 0, at: 0 }], limits, 0);
  assert.equal(buckets[0].tokens, 3);
});

test("a rate of 0 is no limit", () => {
  assert.deepEqual(limitsFor(BOB, { requestsPerMinute: 0, perKeyPerMinute: 0, burst: 5 }), []);
  assert.deepEqual(limitsFor(BOB, undefined), []);
  assert.deepEqual(limitsFor(BOB, { requestsPerMinute: 60, perKeyPerMinute: 30, burst: 5 }), [
    { name: "all", perMinute: 60, burst: 5 },
    { name: "key:web:bob", perMinute: 30, burst: 5 },
  ]);
});

test("counted in Redis; by this replica while Redis is away", async () => {
  const asked = [];
  let away = false;
  let fails = false;
  const store = {
    async takeTokens(limits) {
      asked.push(limits);
      if (fails) throw new RedisAway();
      return 700;
    },
  };
  const metrics = new Metrics();
  const config = { rateLimit: { perKeyPerMinute: 1, burst: 1 } };
  const limiter = new Limiter({ config, store, metrics, isAway: () => away });
  assert.equal(await limiter.take(BOB), 700);
  fails = true;
  assert.equal(await limiter.take(BOB), 0);
  away = true;
  assert.ok((await limiter.take(BOB)) > 59000);
  assert.equal(await limiter.take({ ...BOB, id: "web:eve" }), 0);
  assert.equal(asked.length, 2);
  assert.equal(metrics.get("rate_limited"), 2);
  const free = new Limiter({ config: {}, store, metrics, isAway: () => false });
  assert.equal(await free.take(BOB), 0);
  assert.equal(asked.length, 2);
});
