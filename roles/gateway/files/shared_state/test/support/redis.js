// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import net from "node:net";
import { connectRedis } from "../../lib/client.js";
import { temporaryDirectory } from "./rig.js";

/** Polls until the condition is true, for 10 s at most. */
export const until = async (condition) => {
  const deadline = Date.now() + 10000;
  while (!(await condition())) {
    assert.ok(Date.now() < deadline, "not in time");
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
};

/**
 * Starts a real Redis on a loopback port of its own.
 * @returns {Promise<{client: import("ioredis").Redis, connect: () => import("ioredis").Redis, stop: () => Promise<void>}>}
 */
export async function startRedis() {
  const probe = net.createServer().listen(0, "127.0.0.1");
  await once(probe, "listening");
  const { port } = probe.address();
  probe.close();
  await once(probe, "close");
  const options = ["--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", await temporaryDirectory()];
  const server = spawn("redis-server", options.map(String), { stdio: "ignore" });
  const connect = () => connectRedis({ redis: { host: "127.0.0.1", port }, commandTimeoutMs: 2000 });
  const client = connect();
  client.on("error", () => {});
  await until(() => client.status === "ready");
  const stop = async () => {
    client.disconnect();
    server.kill();
    await once(server, "exit");
  };
  return { client, connect, stop };
}
