// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { isAlive } from "./circuit.js";

const QUESTION = [{ role: "user", content: "ping" }];

/** The smallest real question to a model: a list of models would not tell whether one answers. */
const request = ({ api, endpoint, model }) =>
  api === "ollama"
    ? {
        url: `${endpoint}/api/chat`,
        body: { model, messages: QUESTION, stream: false, options: { num_predict: 1 } },
      }
    : { url: `${endpoint}/chat/completions`, body: { model, messages: QUESTION, stream: false, max_tokens: 1 } };

/**
 * Asks a provider itself whether it answers again, so that no turn has to try it.
 * @param {{api: string, endpoint: string, model: string, key?: string, timeoutMs: number}} provider
 * @returns {Promise<string|null>} null: it answers; else why not, in one word
 */
export async function tryProvider(provider) {
  const { url, body } = request(provider);
  try {
    const response = await fetch(url, {
      method: "POST",
      headers: {
        "content-type": "application/json",
        ...(provider.key && { authorization: `Bearer ${provider.key}` }),
      },
      body: JSON.stringify(body),
      signal: AbortSignal.timeout(provider.timeoutMs),
    });
    await response.text();
    return isAlive(response.status) ? null : String(response.status);
  } catch (error) {
    return error.name === "TimeoutError" ? "timeout" : "connection";
  }
}
