// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import assert from "node:assert/strict";
import fs from "node:fs/promises";
import path from "node:path";
import { test } from "node:test";
import { Metrics } from "../lib/metrics.js";
import { Spool } from "../lib/spool.js";
import { temporaryDirectory } from "./support/rig.js";

const record = (user, id) => ({
  op: "turn",
  conv: { channel: "web", user, id: `web:${user}` },
  turn: { id, messages: [] },
});

async function make(dir, limits = {}) {
  const said = [];
  const log = { warn: (text) => said.push(text), error: (text) => said.push(text) };
  const metrics = new Metrics();
  const spool = new Spool({ dir, maxRecords: 10, maxBytes: 1e6, log, metrics, ...limits });
  await spool.open();
  return { spool, said, metrics };
}

test("records survive a restart, in order", async () => {
  const dir = await temporaryDirectory();
  const first = (await make(dir)).spool;
  for (const [user, id] of [
    ["a", "1"],
    ["b", "2"],
    ["a", "3"],
  ])
    await first.add(record(user, id));
  const { spool } = await make(dir);
  assert.deepEqual(
    spool.pendingTurns("web:a").map(({ id }) => id),
    ["1", "3"],
  );
  assert.deepEqual(spool.conversations(), ["web:a", "web:b"]);
  await spool.add(record("a", "4"));
  assert.deepEqual(
    spool.pendingTurns("web:a").map(({ id }) => id),
    ["1", "3", "4"],
  );
});

test("a removed record is gone for good", async () => {
  const dir = await temporaryDirectory();
  const { spool } = await make(dir);
  const name = await spool.add(record("a", "1"));
  await spool.remove(name);
  await spool.remove(name);
  assert.equal(spool.size, 0);
  assert.equal(spool.bytes, 0);
  assert.equal((await make(dir)).spool.size, 0);
});

test("files are private and complete", async () => {
  const dir = await temporaryDirectory();
  const { spool } = await make(dir);
  const name = await spool.add(record("a", "1"));
  assert.equal((await fs.stat(path.join(dir, name))).mode & 0o777, 0o600);
  assert.deepEqual(await fs.readdir(dir), [name]);
});

test("full: refused, said and counted; what is there stays", async () => {
  const { spool, said, metrics } = await make(await temporaryDirectory(), { maxRecords: 2 });
  assert.ok(await spool.add(record("a", "1")));
  assert.ok(await spool.add(record("a", "2")));
  assert.equal(await spool.add(record("a", "3")), null);
  assert.deepEqual(
    spool.pendingTurns("web:a").map(({ id }) => id),
    ["1", "2"],
  );
  assert.equal(metrics.get("spool_refused"), 1);
  assert.match(said.at(-1), /is full \(2 records/);
});

test("bytes are bounded too", async () => {
  const { spool } = await make(await temporaryDirectory(), { maxBytes: 150 });
  assert.ok(await spool.add(record("a", "1")));
  assert.equal(await spool.add(record("a", "2")), null);
});

test("the high-water warning comes once", async () => {
  const { spool, said, metrics } = await make(await temporaryDirectory());
  for (let i = 0; i < 10; i += 1) await spool.add(record("a", String(i)));
  assert.equal(metrics.get("spool_high_water"), 1);
  assert.equal(said.length, 1);
  assert.match(said[0], /80 % full/);
});

test("a broken file is set aside and the others are read", async () => {
  const dir = await temporaryDirectory();
  await (await make(dir)).spool.add(record("a", "1"));
  await fs.writeFile(path.join(dir, "0000000000000001.json"), "{");
  const { spool, metrics } = await make(dir);
  assert.equal(spool.size, 1);
  assert.equal(metrics.get("spool_unreadable"), 1);
  assert.ok((await fs.readdir(dir)).includes("0000000000000001.json.bad"));
});

test("a disk that refuses: kept in memory and said", async () => {
  const dir = await temporaryDirectory();
  const { spool, said, metrics } = await make(dir);
  await fs.rm(dir, { recursive: true });
  assert.ok(await spool.add(record("a", "1")));
  assert.equal(spool.size, 1);
  assert.equal(metrics.get("spool_write_errors"), 1);
  assert.match(said[0], /kept in memory/);
});
