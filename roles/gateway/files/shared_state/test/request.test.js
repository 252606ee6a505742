// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import assert from "node:assert/strict";
import { test } from "node:test";
import { HttpError, parseRequest, turnError } from "../lib/request.js";

const good = { channel: "web", user_id: "bob", message: "hello" };
const parse = (change, header) => parseRequest(JSON.stringify({ ...good, ...change }), header);
const code = (text, header) => {
  try {
    parseRequest(text, header);
  } catch (error) {
    assert.ok(error instanceof HttpError);
    assert.equal(error.status, 400);
    return error.code;
  }
  return "accepted";
};

test("a good request", () => {
  const request = parse({ message_id: "m-1" });
  assert.deepEqual(
    { ...request, fingerprint: "" },
    { channel: "web", user: "bob", message: "hello", messageId: "m-1", key: "m-1", fingerprint: "" },
  );
  assert.equal(parse({ message_id: "m-1" }, "k-2").key, "k-2");
  assert.equal(parse({}).key, undefined);
});

test("user ids of real channels are accepted", () => {
  for (const user of ["4242", "+4915112345", "123@s.whatsapp.net", "Jane Doe", "名前", "a:b"])
    assert.equal(parse({ user_id: user }).user, user);
});

test("each fault is refused by its name", () => {
  const bad = (change, header) => code(JSON.stringify({ ...good, ...change }), header);
  assert.equal(code("{"), "invalid_json");
  assert.equal(code("[]"), "invalid_body");
  assert.equal(code("null"), "invalid_body");
  assert.equal(bad({ extra: 1 }), "unknown_field");
  for (const channel of [1, undefined, "", "Web", "a:b", "-a", "x".repeat(33)])
    assert.equal(bad({ channel }), "invalid_channel", channel);
  for (const user_id of [1, "", " a", "a\n", "x".repeat(129)])
    assert.equal(bad({ user_id }), "invalid_user_id", user_id);
  for (const message of [1, "", "  ", "a\0b"]) assert.equal(bad({ message }), "invalid_message");
  for (const message_id of [1, "", "a b", "ü", "x".repeat(201)])
    assert.equal(bad({ message_id }), "invalid_message_id");
  assert.equal(bad({}, "a b"), "invalid_idempotency_key");
  assert.equal(bad({}, ""), "invalid_idempotency_key");
  assert.equal(bad({}, "k"), "accepted");
});

test("the fingerprint tells messages apart", () => {
  assert.equal(parse({}).fingerprint, parse({ message_id: "x" }).fingerprint);
  assert.notEqual(parse({}).fingerprint, parse({ message: "hello!" }).fingerprint);
  assert.notEqual(parse({ user_id: "a" }).fingerprint, parse({ user_id: "b" }).fingerprint);
});

test("failed turns become clear errors", () => {
  const is = (args, status, name) => {
    const error = turnError(...args);
    assert.deepEqual([error.status, error.code], [status, name]);
    return error;
  };
  assert.equal(is([503, { code: "gateway_unavailable" }, false], 503, "gateway_unavailable").retryAfter, 1);
  // What the last provider answered is no word about this request or this gateway.
  for (const status of [401, 408, 429, 500, 503]) is([status, { type: "api_error" }, true], 502, "provider_failed");
  is([503, { code: "gateway_unavailable" }, true], 503, "gateway_unavailable");
  is([500, undefined, false], 500, "turn_failed");
  is([429, undefined, false], 429, "rate_limited");
  is([401, undefined, false], 401, "unauthorized");
  is([400, undefined, false], 400, "turn_refused");
  assert.deepEqual(Object.keys(is([500], 500, "turn_failed").body.error), ["message", "type", "code"]);
});
