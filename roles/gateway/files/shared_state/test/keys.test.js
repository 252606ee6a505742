// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import assert from "node:assert/strict";
import { test } from "node:test";
import { agentOf, parseSessionKey, redisKeys, sessionKeyFor } from "../lib/keys.js";

const id = (key) => parseSessionKey(key)?.id ?? null;

test("each kind of session key names its conversation", () => {
  assert.equal(id("agent:main:api:web:bob"), "web:bob");
  assert.equal(id("agent:main:openai-user:web:bob"), "web:bob");
  assert.equal(id("agent:main:openai-user:bob"), "openai:bob");
  assert.equal(id("agent:main:telegram:direct:4242"), "telegram:4242");
  assert.equal(id("agent:main:telegram:work:direct:4242"), "telegram:work:4242");
  assert.equal(id("agent:main:whatsapp:group:123@g.us"), "whatsapp:group:123@g.us");
  assert.equal(id("agent:main:telegram:group:-100:topic:5"), "telegram:group:-100:topic:5");
  assert.equal(id("agent:main:main"), "main:main");
  assert.equal(id("mine"), "mine:mine");
});

test("another agent has conversations of its own", () => {
  assert.equal(id("agent:sales:telegram:direct:1"), "sales/telegram:1");
  assert.notEqual(id("agent:sales:api:web:bob"), id("agent:main:api:web:bob"));
});

test("internal and one-off sessions are no conversation", () => {
  for (const key of [
    undefined,
    "",
    "agent:main",
    "agent:main:internal-session-effects:run-1",
    "agent:main:openai:7f",
    "agent:main:subagent:1",
    "agent:main:cron:1",
    "agent:main:telegram:direct:1:subagent:2",
    "agent:main:main:heartbeat",
  ]) {
    assert.equal(parseSessionKey(key), null, String(key));
  }
});

test("a user id survives the session key, even when the gateway lower-cases it", () => {
  for (const user of ["bob", "Bob", "AbC/x y", "a:b", "~41", "ключ", "😀", "a@b.c+d", "api", "direct"]) {
    const key = sessionKeyFor("web", user);
    assert.equal(key, key.toLowerCase());
    assert.deepEqual(parseSessionKey(key.toLowerCase()), { channel: "web", user, id: `web:${user}` });
  }
});

test("two users never share a key", () => {
  assert.notEqual(sessionKeyFor("web", "Bob"), sessionKeyFor("web", "bob"));
  assert.notEqual(sessionKeyFor("web", "~42ob"), sessionKeyFor("web", "Bob"));
});

test("the Redis keys are the documented ones", () => {
  const keys = redisKeys("oc:");
  const conv = parseSessionKey("agent:main:telegram:direct:4242");
  assert.equal(keys.conversation(conv), "oc:conv:telegram:4242");
  assert.equal(keys.session(conv), "oc:session:telegram:4242");
  assert.equal(keys.metrics("node1-1"), "oc:metrics:gateway:node1-1");
});

test("parts of a dedupe key cannot run into each other", () => {
  const keys = redisKeys("oc:");
  assert.notEqual(keys.dedupe(["a", "b:c", "d", "e"]), keys.dedupe(["a:b", "c", "d", "e"]));
  assert.notEqual(keys.dedupe(["a", undefined, "b"]), keys.dedupe(["a", "b", undefined]));
});

test("the agent of a session key", () => {
  assert.equal(agentOf("agent:sales:api:web:bob"), "sales");
  assert.equal(agentOf("mine"), "main");
});
