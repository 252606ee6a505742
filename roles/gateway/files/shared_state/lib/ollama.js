// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

const INTERVAL_MS = 5000;
const TIMEOUT_MS = 2000;

/** Asks Ollama for its version now and then, so that the health route can answer at once. */
export class OllamaCheck {
  #url;
  #timer;
  /** null: none is configured. */
  healthy = null;

  constructor(url) {
    this.#url = url;
    if (url) this.healthy = false;
  }

  start() {
    if (!this.#url) return;
    void this.#check();
    this.#timer = setInterval(() => void this.#check(), INTERVAL_MS);
    this.#timer.unref();
  }

  stop() {
    clearInterval(this.#timer);
  }

  async #check() {
    try {
      const response = await fetch(new URL("/api/version", this.#url), { signal: AbortSignal.timeout(TIMEOUT_MS) });
      await response.body?.cancel();
      this.healthy = response.ok;
    } catch {
      this.healthy = false;
    }
  }
}
