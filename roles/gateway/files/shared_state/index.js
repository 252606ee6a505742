// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { connectRedis } from "./lib/client.js";
import { resolveConfig } from "./lib/config.js";
import { ENGINE_ID, TurnEngine } from "./lib/engine.js";
import { createHooks, HOOK_OPTIONS } from "./lib/hooks.js";
import { sendJson } from "./lib/http.js";
import { handleMessage } from "./lib/message.js";
import { handleOwned, OWNED_PATH } from "./lib/owned.js";
import { PEER_PATH } from "./lib/peers.js";
import { currentRuntime, replaceRuntime, Runtime, stopRuntime } from "./lib/runtime.js";
import { serveSqliteWaits } from "./lib/sqlite.js";

/** The gateway logs all plugins under one name. */
const named = (logger) =>
  Object.fromEntries(
    ["info", "warn", "error"].map((level) => [level, (text) => logger[level](`shared-state: ${text}`)]),
  );

/** Runs a method of the gateway with the rights of the request that is being answered. */
async function dispatch(method, params) {
  const { dispatchGatewayMethod } = await import("openclaw/plugin-sdk/gateway-method-runtime");
  return dispatchGatewayMethod(method, params);
}

export default {
  id: "shared-state",
  name: "Shared state",

  /** Called more than once by the gateway, also without serving: nothing is opened before the first use. */
  register(api) {
    let config;
    const settings = () => (config ??= resolveConfig(api.pluginConfig));
    const create = () =>
      new Runtime({
        config: settings(),
        log: named(api.logger),
        version: api.runtime.version,
        connect: () => connectRedis(settings()),
      });
    const current = () => currentRuntime(create);

    api.registerService({
      id: "shared-state",
      start: async (ctx) => {
        serveSqliteWaits();
        await replaceRuntime(create);
        (await current()).inbound.start(await import("openclaw/plugin-sdk/diagnostic-runtime").catch(() => null));
        // Not waited for: the scheduler may be loading still.
        if (ctx?.getCron) void (await current()).cron.start(() => ctx.getCron());
      },
      stop: () => stopRuntime(settings()),
    });
    api.registerContextEngine(ENGINE_ID, () => new TurnEngine(current));
    const hooks = createHooks(current);
    for (const [name, handler] of Object.entries(hooks)) api.on(name, handler, HOOK_OPTIONS[name]);
    // A channel's /new and /reset arrive here; both ways lead to the same, and twice does no harm.
    api.registerHook(["command:new", "command:reset"], (event) => hooks.before_reset(event, event), {
      name: "shared-state-reset",
      description: "Forgets a conversation that its user has reset",
    });
    api.registerHttpRoute({
      path: "/api/v1/message",
      auth: "gateway",
      handler: async (req, res) => handleMessage(await current(), req, res),
    });
    api.registerHttpRoute({
      path: PEER_PATH,
      auth: "gateway",
      handler: async (req, res) => (await current()).peers.handle(req, res),
    });
    api.registerHttpRoute({
      path: OWNED_PATH,
      auth: "gateway",
      // The token's full rights, for channels.status.
      gatewayRuntimeScopeSurface: "trusted-operator",
      handler: async (req, res) => {
        const { handover } = await current();
        return handleOwned({ channels: () => api.runtime.config.current().channels, dispatch, handover }, req, res);
      },
    });
    api.registerHttpRoute({
      path: "/api/v1/health",
      auth: "plugin",
      handler: async (_req, res) => sendJson(res, 200, (await current()).health()),
    });
  },
};
