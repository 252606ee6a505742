// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { sendError, sendJson } from "./http.js";
import { HttpError } from "./request.js";

export const OWNED_PATH = "/api/v1/owned";

export const DEFAULT_ACCOUNT = "default";
// Sections of "channels" that are no channel.
const NO_CHANNEL = new Set(["defaults", "modelByChannel"]);
// A channel's summary says nothing about its accounts: without it, they are known all the same.
const HARMLESS = /^\S+ summary (failed|timed out)/;

const own = (object, key) => (object && Object.hasOwn(object, key) ? object[key] : undefined);
const isOn = (section) => Boolean(section) && section.enabled !== false;

/** Accounts of a channel that the configuration enables; one without a list of accounts is its own only account. */
function enabledAccounts(channel) {
  if (!isOn(channel)) return [];
  if (!channel.accounts) return [DEFAULT_ACCOUNT];
  return Object.keys(channel.accounts).filter((id) => isOn(channel.accounts[id]));
}

/** Does the configuration enable "channel/account"? */
function isConfigured(configured, account) {
  const [name, ...rest] = account.split("/");
  return enabledAccounts(own(configured, name)).includes(rest.join("/"));
}

/** Is an account that the gateway reports enabled by the configuration in force? In doubt, yes. */
function isEnabled(channel, { accountId, configured }) {
  if (!isOn(channel)) return false;
  if (!channel.accounts) return true;
  const account = own(channel.accounts, accountId);
  // Its settings may be those of the channel itself.
  return account ? isOn(account) : accountId === DEFAULT_ACCOUNT && configured !== false;
}

/**
 * Is an account surely not connected? "running" is no proof: the gateway says false of what is disabled in the
 * configuration, seconds before it has stopped it (seen: 2 s), and also when it cannot stop it. The times and "lifecycle"
 * are those of the account itself; its stop is noted once it is over.
 */
function isStill({ running, connected, restartPending, lifecycle, lastStartAt, lastStopAt }) {
  if (running !== false || connected === true || restartPending === true) return false;
  // Without a start there is nothing to end: an account that was disabled from the beginning has no lifecycle.
  return (lifecycle ?? "stopped") === "stopped" && (lastStopAt ?? 0) >= (lastStartAt ?? 0);
}

/**
 * Which accounts this process may be connected with, or is about to be: all but those that surely are not.
 * @param {string[]} wanted channels; empty = all
 * @param {object} configured section "channels" of the configuration in force
 * @param {object} status answer of the gateway's method channels.status
 * @param {(account: string) => boolean} isStopped was it stopped by hand? Then the configuration does not start it. One that was
 *   never started is another matter: the first start of a gateway's channels forgets what was stopped before it.
 * @returns {{on: string[], accounts: object}} ids are "channel/account"
 */
export function ownedAccounts(wanted, configured, status, isStopped = () => false) {
  const reported = status.channelAccounts;
  const all = [...Object.keys(configured).filter((name) => !NO_CHANNEL.has(name)), ...Object.keys(reported)];
  const on = new Set();
  const accounts = {};
  for (const name of wanted.length ? wanted : all) {
    const channel = own(configured, name);
    const known = own(reported, name) ?? [];
    for (const account of known) {
      const id = `${name}/${account.accountId}`;
      const { running = null, connected = null, lifecycle = null, stateReason: reason = null } = account;
      accounts[id] = { running, connected, lifecycle, reason };
      if (!isStill(account) || (isEnabled(channel, account) && !(account.lastStartAt && isStopped(id)))) on.add(id);
    }
    // Enabled, and the gateway says nothing of it.
    for (const id of enabledAccounts(channel)) {
      if (!known.some(({ accountId }) => accountId === id)) on.add(`${name}/${id}`);
    }
  }
  return { on: [...on].sort(), accounts };
}

/** What the gateway says of all channels. @throws {Error} when it does not, or leaves anything out */
async function channelStatus(dispatch) {
  const { ok, payload, error } = await dispatch("channels.status", {});
  if (ok !== true) throw new Error(error?.message ?? "the gateway refused");
  if (!payload?.channelAccounts || typeof payload.channelAccounts !== "object") throw new Error("no accounts in the answer");
  const lost = payload.partial ? (payload.warnings ?? ["the answer is partial"]).filter((text) => !HARMLESS.test(text)) : [];
  if (lost.length) throw new Error(lost.join("; "));
  return payload;
}

/**
 * GET /api/v1/owned?channels=telegram,whatsapp&leaving=telegram/poll&keeping=whatsapp/main: proof of which accounts this process
 * has let go. leaving, keeping: accounts that their owner wants off, and on, here; "busy" are those that are to leave and are
 * not stopped, see handover.js.
 * @param {{channels: () => object, dispatch: (method: string, params: object) => Promise<object>, handover: import("./handover.js").Handover}} gateway
 *   channels: that section of the configuration in force
 */
export async function handleOwned({ channels, dispatch, handover }, req, res) {
  try {
    const query = new URL(req.url, "http://localhost").searchParams;
    const [wanted, leaving, keeping] = ["channels", "leaving", "keeping"].map((name) => (query.get(name) ?? "").split(",").filter(Boolean));
    for (const account of leaving) await handover.leave(account, dispatch);
    for (const account of keeping) await handover.keep(account, isConfigured(channels(), account), dispatch);
    const status = await channelStatus(dispatch);
    for (const [name, accounts] of Object.entries(status.channelAccounts))
      for (const { accountId, running } of accounts) if (running === true) handover.runs(`${name}/${accountId}`);
    const owned = ownedAccounts(wanted, channels() ?? {}, status, (account) => handover.isStopped(account));
    return sendJson(res, 200, { pid: process.pid, ...owned, busy: handover.busy() });
  } catch (error) {
    const text = `The state of the channels cannot be told: ${error.message}`;
    return sendError(res, new HttpError(503, "channels_unknown", text));
  }
}
