// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { agentOf, parseSessionKey } from "./keys.js";
import { Recent } from "./recent.js";

const SDK = "openclaw/plugin-sdk/session-transcript-runtime";
const RECENT_SESSIONS = 1000;
const NOTHING = {
  input: 0,
  output: 0,
  cacheRead: 0,
  cacheWrite: 0,
  totalTokens: 0,
  cost: { input: 0, output: 0, cacheRead: 0, cacheWrite: 0, total: 0 },
};

const close = (sdk, session) =>
  sdk.appendSessionTranscriptMessageByIdentity({
    ...session,
    message: {
      role: "assistant",
      content: [{ type: "text", text: "" }],
      stopReason: "aborted",
      timestamp: Date.now(),
      api: "openai-completions",
      provider: "openclaw",
      model: "none",
      usage: NOTHING,
    },
  });

/**
 * The gateway's own transcript of a session. The model is shown another history, with one exception: when the last that
 * stands here is a user's message, the gateway puts it in front of the session's next one, on this replica only. So a turn
 * that will never be answered here gets an end. What fails is logged: the next turn must not fail for it.
 */
export class Transcript {
  #log;
  #sdk;
  #bornAt;
  #seen = new Recent(RECENT_SESSIONS);

  /**
   * @param {{info: Function, warn: Function}} log
   * @param {() => Promise<object>} [sdk] the gateway's functions for transcripts
   * @param {number} [bornAt] when this process began, ms
   */
  constructor({ log, sdk = () => import(SDK), bornAt = performance.timeOrigin }) {
    this.#log = log;
    this.#sdk = sdk;
    this.#bornAt = bornAt;
  }

  /** Ends a turn that was given up: its client hung up, every provider failed. */
  async closeGivenUp(sessionKey, sessionId) {
    await this.#try(sessionKey, sessionId, close);
  }

  /**
   * Ends a turn that died with an earlier life of this gateway. To be called before a turn reads its transcript; looks once
   * for each session. (The gateway's own replay of such a turn, which is blocked, comes later than the first requests.)
   */
  async closeInterrupted({ sessionKey, sessionId }) {
    if (!sessionId || !parseSessionKey(sessionKey) || this.#seen.get(sessionId)) return;
    await this.#try(sessionKey, sessionId, async (sdk, session) => {
      const last = (await sdk.readVisibleSessionTranscriptMessageEntries(session)).at(-1);
      if (last?.role === "user" && Date.parse(last.createdAt) < this.#bornAt) {
        await close(sdk, session);
        this.#log.info(`A turn of ${sessionKey} that an earlier life of this gateway began is not shown here`);
      }
      // Not before: the gateway's replay and a turn may look at once, and neither may go on while the other one still writes.
      this.#seen.set(sessionId, true);
    });
  }

  async #try(sessionKey, sessionId, work) {
    try {
      await work(await this.#sdk(), { agentId: agentOf(sessionKey), sessionKey, sessionId });
    } catch (error) {
      this.#log.warn(`An unfinished turn of ${sessionKey} may stay in the local transcript: ${error.message}`);
    }
  }
}
