// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import assert from "node:assert/strict";
import { test } from "node:test";
import { DEFAULTS } from "../lib/config.js";
import { Metrics } from "../lib/metrics.js";
import { Store } from "../lib/store.js";

/** A store whose Redis has this many replicas that confirm; `asked` is what each WAIT asked for: [replicas, ms]. */
function storeOf({ waitReplicas, confirming }) {
  const asked = [];
  const client = {
    pipeline: () => ({
      eval() {
        return this;
      },
      call: (_wait, replicas, ms) => asked.push([Number(replicas), Number(ms)]),
      exec: async () => [
        [null, ["committed", 1, 0]],
        [null, confirming()],
      ],
    }),
  };
  const config = { ...DEFAULTS, replica: "A", waitReplicas };
  return { asked, store: new Store({ config, link: { run: (work) => work(client) }, metrics: new Metrics() }) };
}

const record = { conv: { channel: "web", user: "bob", id: "web:bob" }, owner: "A/1", base: 0, epoch: 0, turn: { id: "t", at: 1 } };
const { waitTimeoutMs } = DEFAULTS;

test("a turn asks all Redis replicas; what was kept is content with one", async () => {
  const { asked, store } = storeOf({ waitReplicas: 2, confirming: () => 1 });
  assert.equal((await store.commit(record, { mode: "next" })).confirmed, false);
  assert.equal((await store.commit(record, { mode: "kept" })).confirmed, true);
  assert.deepEqual(
    asked.map(([replicas]) => replicas),
    [2, 1],
  );
});

test("while a replica is missing, turns wait for it for a short time only", async () => {
  let confirming = 1;
  const { asked, store } = storeOf({ waitReplicas: 2, confirming: () => confirming });
  await store.commit(record, { mode: "next" });
  await store.commit(record, { mode: "kept" });
  await store.commit(record, { mode: "next" });
  confirming = 2;
  await store.commit(record, { mode: "next" });
  await store.commit(record, { mode: "next" });
  assert.deepEqual(
    asked.filter(([replicas]) => replicas === 2).map(([, ms]) => ms),
    [waitTimeoutMs, 50, 50, waitTimeoutMs],
  );
});

test("a single Redis has nobody to ask", async () => {
  const { asked, store } = storeOf({ waitReplicas: 0, confirming: () => 0 });
  assert.equal((await store.commit(record, { mode: "next" })).confirmed, true);
  assert.equal((await store.commit(record, { mode: "kept" })).confirmed, true);
  assert.deepEqual(asked, []);
});
