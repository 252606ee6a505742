// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import http from "node:http";
import { HttpError } from "./request.js";

/**
 * Reads a request body.
 * @throws {HttpError} 413 beyond maxBytes
 */
export async function readBody(req, maxBytes) {
  const tooLarge = () => new HttpError(413, "body_too_large", `The body must not exceed ${maxBytes} bytes.`);
  if (Number(req.headers["content-length"]) > maxBytes) throw tooLarge();
  const chunks = [];
  let size = 0;
  for await (const chunk of req) {
    size += chunk.length;
    if (size > maxBytes) throw tooLarge();
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("utf8");
}

/** Answers with JSON. @returns {true} handled */
export function sendJson(res, status, body, headers = {}) {
  if (res.writableEnded || res.destroyed) return true;
  res.writeHead(status, { "content-type": "application/json", "cache-control": "no-store", ...headers });
  res.end(JSON.stringify(body));
  return true;
}

export function sendError(res, error) {
  const known = error instanceof HttpError ? error : new HttpError(500, "internal_error", "Internal error.");
  const headers = known.retryAfter ? { "retry-after": String(known.retryAfter) } : {};
  // What is left of a refused body is not read.
  if (known.status === 413) headers.connection = "close";
  return sendJson(res, known.status, known.body, headers);
}

/**
 * One JSON request to this gateway or another one, on a connection of its own: a kept one may have been closed by a busy
 * process, and then nobody knows what it began. An error says in `connected` whether the other side can have got it.
 * @param {string} url
 * @param {{headers: object, body: object, signal: AbortSignal}} options
 * @returns {Promise<{status: number, headers: object, body: object|undefined}>}
 */
export function postJson(url, { headers, body, signal }) {
  const payload = Buffer.from(JSON.stringify(body));
  return new Promise((resolve, reject) => {
    const request = http.request(
      url,
      {
        method: "POST",
        agent: false,
        signal,
        headers: { ...headers, "content-type": "application/json", "content-length": payload.length },
      },
      async (response) => {
        try {
          const chunks = [];
          for await (const chunk of response) chunks.push(chunk);
          let parsed;
          try {
            parsed = JSON.parse(Buffer.concat(chunks).toString("utf8"));
          } catch {
            /* not JSON: only the status counts */
          }
          resolve({ status: response.statusCode, headers: response.headers, body: parsed });
        } catch (error) {
          reject(Object.assign(error, { connected: true }));
        }
      },
    );
    let connected = false;
    request.on("socket", (socket) => {
      connected = !socket.connecting;
      if (socket.connecting) socket.once("connect", () => (connected = true));
    });
    request.on("error", (error) => reject(Object.assign(error, { connected })));
    request.end(payload);
  });
}
