// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { agentOf } from "./keys.js";

const SDK = "openclaw/plugin-sdk/session-transcript-runtime";
const NOTHING = {
  input: 0,
  output: 0,
  cacheRead: 0,
  cacheWrite: 0,
  totalTokens: 0,
  cost: { input: 0, output: 0, cacheRead: 0, cacheWrite: 0, total: 0 },
};

/**
 * Ends a turn that was given up (its client hung up, every provider failed) in the local transcript. Without an end its
 * user message would be put in front of the session's next message on this replica, and on this replica only.
 * @param {string} sessionKey
 * @param {string} sessionId
 * @param {object} [sdk] for tests
 */
export async function closeGivenUpTurn(sessionKey, sessionId, sdk) {
  const { appendSessionTranscriptMessageByIdentity: append } = sdk ?? (await import(SDK));
  await append({
    agentId: agentOf(sessionKey),
    sessionKey,
    sessionId,
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
}
