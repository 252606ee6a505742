// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { parseSessionKey } from "./keys.js";
import { DEFAULT_ACCOUNT } from "./owned.js";

const CRASH_REPLAY = "main_session_restart_recovery";
// What the gateway writes to a channel's user about its own crash replay, which is blocked here: that it goes on, and that it was blocked.
const REPLAY_GOES_ON = /^I'm continuing your interrupted request now \(the gateway has just restarted\)/;
const REPLAY_BLOCKED = /^Your message could not be sent: .*blocked by shared-state\)?$/s;
const INTERRUPTED = "I was interrupted while I was answering. If your last message has no answer, please send it again.";

/** Turns that a hook is not asked about cost nothing, and their recovery does not have to reckon with it. */
export const HOOK_OPTIONS = { before_agent_reply: { eligibleTriggers: ["cron"] } };

const accountOf = (ctx) => `${ctx?.channelId}/${ctx?.accountId ?? DEFAULT_ACCOUNT}`;

/**
 * Hook handlers. before_agent_finalize is left alone on purpose: registering it ends streaming.
 * @param {() => Promise<import("./runtime.js").Runtime>} current
 */
export const createHooks = (current) => ({
  /** A message that a channel delivered again, here or on another replica, is answered once. */
  async before_dispatch(event, ctx) {
    return (await current()).inbound.begin(event, ctx);
  },

  /** A scheduled job is run by one replica. Registered for the trigger "cron" only. */
  async before_agent_reply(_event, ctx) {
    if (ctx?.trigger !== "cron") return undefined;
    try {
      return await (await current()).cron.beforeReply(ctx);
    } catch {
      // Whoever has no runtime must not run what every other replica runs too.
      return { handled: true };
    }
  },

  async cron_changed(event) {
    await (await current()).cron.changed(event);
  },

  /** The scheduler is there, for the first time or anew. */
  async cron_reconciled() {
    await (await current()).cron.reconcile();
  },

  /** After a crash the gateway repeats the interrupted turn by itself; another replica has answered it long since. */
  async before_agent_run(_event, ctx) {
    const runtime = await current();
    const reservation = runtime.reservations.get(ctx?.sessionKey);
    if (reservation) reservation.begun = true;
    if (ctx?.sessionKey && (await runtime.inbound.lost(ctx.sessionKey))) {
      runtime.log.warn(`A turn in ${ctx.sessionKey} is not run: another replica has its message by now`);
      return { outcome: "block", reason: "another replica has this message", message: "" };
    }
    if (ctx?.inputProvenance?.sourceTool !== CRASH_REPLAY) return undefined;
    runtime.metrics.add("crash_replays_blocked");
    runtime.log.info(`The replay of an interrupted turn in ${ctx.sessionKey} was blocked`);
    return { outcome: "block", reason: "interrupted turns are not repeated by a replica", message: "" };
  },

  /** What a channel's user is to know of a crash: that an answer may be missing, not that something goes on which does not. */
  async message_sending(event, ctx) {
    const content = event.content ?? "";
    if (REPLAY_GOES_ON.test(content)) return { cancel: true, cancelReason: "the replay is blocked" };
    const { inbound, handover } = await current();
    const account = accountOf(ctx);
    await handover.pass(account, event.to);
    handover.begin(account, event.to);
    if (ctx?.sessionKey) {
      // Two replicas must not answer one message, and of one that did not run its turn nobody needs to hear.
      if (await inbound.lost(ctx.sessionKey)) {
        handover.end(account, event.to);
        return { cancel: true, cancelReason: "another replica has this message" };
      }
      inbound.sending(ctx.sessionKey);
    }
    if (REPLAY_BLOCKED.test(content)) return { content: INTERRUPTED };
    return undefined;
  },

  async message_sent(event, ctx) {
    const { inbound, handover } = await current();
    handover.end(accountOf(ctx), event.to);
    const sessionKey = event.sessionKey ?? ctx?.sessionKey;
    if (sessionKey && event.success) inbound.sent(sessionKey);
  },

  /** A provider whose circuit is open is passed over. The session's transcript is not read yet. */
  async before_model_resolve(_event, ctx) {
    const { breaker, transcript } = await current();
    await transcript.closeInterrupted(ctx ?? {});
    return breaker.select(ctx?.modelProviderId, ctx?.modelId, ctx?.runId);
  },

  async model_call_ended(event) {
    (await current()).breaker.modelCallEnded(event);
  },

  async agent_end(event, ctx) {
    const runtime = await current();
    // A provider's error is a success to the gateway: it may still ask another one.
    const success = event.success && event.messages?.at(-1)?.stopReason !== "error";
    runtime.metrics.add(success ? "runs_succeeded" : "runs_failed");
    const engine = runtime.active.get(ctx?.sessionKey);
    if (success && engine) engine.ended = event.messages;
    await runtime.breaker.attemptEnded(event, ctx?.modelProviderId);
    // A failed attempt may be followed by another provider's: only the turn's end gives its claims back.
    // Not waited for: while Redis is away it is tried for a minute, and the answer must not wait for that.
    if (success && ctx?.sessionKey) void runtime.inbound.committed(ctx.sessionKey);
  },

  async before_reset(_event, ctx) {
    const conv = parseSessionKey(ctx?.sessionKey);
    if (conv) await (await current()).reset(conv);
  },
});
