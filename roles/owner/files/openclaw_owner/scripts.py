# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lua scripts: each is one atomic step of a lease. Times are milliseconds of Redis's own clock.

A singleton's lease is the hash ``oc:owner:<id>``: ``holder`` (replica), ``host``, ``token`` (grows with each grant), ``since`` (seconds since 1970),
``expires`` (ms), ``released`` (0 or 1), ``faults`` (holders in a row that died soon after they got it) and ``pause`` (ms, until when nobody gets it
because of that: what kills each replica that has it must not kill them all). It has no TTL, so no policy ``volatile-*`` evicts it, and the token
outlives all leases. All of them work in a full memory, too.
"""

_HEAD = """#!lua flags=allow-oom
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function text(number) return string.format('%.0f', number) end
local function ours(key, replica, token)
  local found = redis.call('HMGET', key, 'holder', 'token', 'released')
  return found[1] == replica and found[2] == token and found[3] == '0'
end
"""

#: KEYS lease; ARGV replica, host, lease ms, linger ms.  Returns {1, token, since}, or {0, holder, its host, ms until it may be taken}.
ACQUIRE = (
    _HEAD
    + """
local holder, host, token, expires, released, pause = unpack(redis.call('HMGET', KEYS[1], 'holder', 'host', 'token', 'expires', 'released', 'pause'))
local left = tonumber(expires or 0) + ARGV[4] - now
local wait = tonumber(pause or 0) - now
if holder and released == '1' and wait > 0 then return {0, holder, host or '', wait} end
if holder and released == '0' and left >= 0 then return {0, holder, host or '', left} end
token = tonumber(token or 0) + 1
redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'host', ARGV[2], 'token', text(token), 'since', t[1], 'expires', text(now + ARGV[3]), 'released', 0)
return {1, token, tonumber(t[1])}"""
)

#: KEYS lease; ARGV replica, token, lease ms.  Returns 1, or 0 when the lease is not theirs.
RENEW = (
    _HEAD
    + """
if not ours(KEYS[1], ARGV[1], ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], 'expires', text(now + ARGV[3]))
return 1"""
)

#: KEYS lease; ARGV replica, token, whether the replica died (0 or 1).  Returns 1, or 0 when the lease is not theirs.
#: The first one that died costs nothing, the next ones 15, 60, 240, 300 s; who had it for ten minutes begins a new count.
RELEASE = (
    _HEAD
    + """
if not ours(KEYS[1], ARGV[1], ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], 'released', 1)
local faults, since = unpack(redis.call('HMGET', KEYS[1], 'faults', 'since'))
faults = tonumber(faults or 0)
if t[1] - tonumber(since or 0) >= 600 then faults = 0 end
if ARGV[3] == '1' then
  faults = faults + 1
  if faults > 1 then redis.call('HSET', KEYS[1], 'pause', text(now + 1000 * math.min(300, 15 * 4 ^ (faults - 2)))) end
end
redis.call('HSET', KEYS[1], 'faults', faults)
return 1"""
)

#: KEYS leases.  Returns {now, {holder, host, token, since, expires, released, pause}...}, in their order; what is not there is ''.
LOOK = (
    _HEAD
    + """
local answer = {now}
for _, key in ipairs(KEYS) do
  local found = redis.call('HMGET', key, 'holder', 'host', 'token', 'since', 'expires', 'released', 'pause')
  for i = 1, 7 do found[i] = found[i] or '' end
  answer[#answer + 1] = found
end
return answer"""
)

#: KEYS stream of the cluster's events; ARGV type, host, detail as JSON.  A user that may not set its end leaves that to the others who write there.
EVENT = (
    _HEAD
    + """
redis.call('XADD', KEYS[1], 'MAXLEN', '~', 1000, '*', 'type', ARGV[1], 'at', text(now), 'replica', ARGV[2], 'detail', ARGV[3])
redis.pcall('EXPIRE', KEYS[1], 604800)
return 1"""
)
