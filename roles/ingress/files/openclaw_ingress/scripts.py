# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lua scripts: each is one atomic step of the journal. Times are milliseconds of Redis's own clock.

Keys, under the prefix ``p`` (``oc:ingress:``); no key but ``seen`` has a TTL, so none can be evicted by a policy ``volatile-*``:

- ``journal``        stream, one entry for each event, waiting or dead: its id is the event's id
- ``live``, ``dead``  sorted sets of ids, by the time of acceptance, and of death; an id is in one of them
- ``queue:<conv>``   list of ids in order; ``due``: sorted set of conversations with a queue, by when they may be taken
- ``leases``         hash conversation -> ``owner/token``; a lease ends when the conversation is due again and somebody takes it
- ``state``          hash id -> JSON, what happened to an event so far
- ``held``           hash id -> replica, of events that a replica has; ``holding``: hash replica -> how many
- ``size``           hash: ``bytes``, ``dead_bytes``, ``high`` (1 between the high-water mark and the low one)
- ``token``          counter, of leases
- ``seen:<event>``   id of the entry of an event of a provider, for as long as it may be repeated

KEYS are always the prefix and the stream of events of the whole cluster. What drains the journal works in a full memory, too.
"""

_HEAD = """
local p = KEYS[1]
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function text(number) return string.format('%.0f', number) end
local function fields(id)
  local entry, answer = redis.call('XRANGE', p .. 'journal', id, id)[1], {}
  if entry then for i = 1, #entry[2], 2 do answer[entry[2][i]] = entry[2][i + 1] end end
  return answer
end
local function field(id, name) return fields(id)[name] end
local function event(kind, host, detail)
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', 1000, '*', 'type', kind, 'at', text(now), 'replica', host, 'detail', cjson.encode(detail))
  redis.call('EXPIRE', KEYS[2], 604800)
end
local function hold(id, replica)
  local before = redis.call('HGET', p .. 'held', id)
  if before == replica then return end
  if before and redis.call('HINCRBY', p .. 'holding', before, -1) <= 0 then redis.call('HDEL', p .. 'holding', before) end
  if not replica then
    redis.call('HDEL', p .. 'held', id)
  else
    redis.call('HSET', p .. 'held', id, replica)
    redis.call('HINCRBY', p .. 'holding', replica, 1)
  end
end
local function remove(id)
  redis.call('XDEL', p .. 'journal', id)
  redis.call('HDEL', p .. 'state', id)
end
local function size() return redis.call('ZCARD', p .. 'live'), tonumber(redis.call('HGET', p .. 'size', 'bytes') or 0) end
"""

_DRAIN = "#!lua flags=allow-oom\n" + _HEAD

#: A dead letter is bounded by count, bytes and age; the oldest go first.
_BURY = """
local function bury(most, most_bytes, age)
  local dead, gone = p .. 'dead', 0
  while true do
    local oldest = redis.call('ZRANGE', dead, 0, 0, 'WITHSCORES')
    if not oldest[1] then break end
    local many = redis.call('ZCARD', dead) > tonumber(most)
    local large = tonumber(redis.call('HGET', p .. 'size', 'dead_bytes') or 0) > tonumber(most_bytes)
    if not many and not large and now - oldest[2] <= tonumber(age) then break end
    redis.call('HINCRBY', p .. 'size', 'dead_bytes', -tonumber(field(oldest[1], 'bytes') or 0))
    redis.call('ZREM', dead, oldest[1])
    remove(oldest[1])
    gone = gone + 1
  end
  return gone
end
"""

#: An event leaves its queue: returns its bytes, nil when it was not in it any more.
_LEAVE = """
local function leave(conv, id)
  if redis.call('LREM', p .. 'queue:' .. conv, 1, id) == 0 then return nil end
  local bytes = tonumber(field(id, 'bytes') or 0)
  redis.call('ZREM', p .. 'live', id)
  redis.call('HINCRBY', p .. 'size', 'bytes', -bytes)
  hold(id, nil)
  return bytes
end
"""

#: Stores an event once. ARGV conversation, event, group, claim's key, meta, body, dedupe ms, most events, most bytes, high events, high bytes, host,
#: arrival's key
#: Returns {status, id, 1 = the high-water mark was crossed just now}: accepted | duplicate | full.
ACCEPT = (
    _HEAD
    + """
local seen = p .. 'seen:' .. ARGV[2]
local id = redis.call('GET', seen)
if id then
  -- A write, so that a WAIT behind this covers the entry that was made before.
  redis.call('PEXPIRE', seen, ARGV[7])
  return {'duplicate', id, 0}
end
local conv, bytes = ARGV[1], #ARGV[5] + #ARGV[6]
local count, total = size()
if count + 1 > tonumber(ARGV[8]) or total + bytes > tonumber(ARGV[9]) then return {'full', '', 0} end
id = redis.call('XADD', p .. 'journal', '*', 'conversation', conv, 'group', ARGV[3], 'claim', ARGV[4], 'arrival', ARGV[13], 'bytes', bytes,
  'meta', ARGV[5], 'body', ARGV[6])
redis.call('SET', seen, id, 'PX', ARGV[7])
redis.call('ZADD', p .. 'live', text(now), id)
total = redis.call('HINCRBY', p .. 'size', 'bytes', bytes)
redis.call('RPUSH', p .. 'queue:' .. conv, id)
redis.call('ZADD', p .. 'due', 'NX', text(now), conv)
local crossed = (count + 1 >= tonumber(ARGV[10]) or total >= tonumber(ARGV[11])) and redis.call('HSETNX', p .. 'size', 'high', 1) == 1
if crossed then event('ingress_high_water', ARGV[12], {events = count + 1, bytes = total, max_events = tonumber(ARGV[8]), max_bytes = tonumber(ARGV[9])}) end
return {'accepted', id, crossed and 1 or 0}"""
)

#: Takes conversations that are due, under a lease. ARGV owner, lease ms, most conversations, most events of a group
#: Returns {now, ms until the next one is due (-1 = none), {conversation, lease, {id, accepted, meta, state, claim, arrival, 1 = may be claimed}...}...}.
#: claim: "", running, committed, unsent, done; arrival: what a gateway says of the event, "" as long as it is not through with it
TAKE = (
    _DRAIN
    + """
local answer = {now, -1}
for _, conv in ipairs(redis.call('ZRANGE', p .. 'due', '-inf', text(now), 'BYSCORE', 'LIMIT', 0, ARGV[3])) do
  local taken, group = {conv, ARGV[1] .. '/' .. text(redis.call('INCR', p .. 'token'))}, nil
  for i, id in ipairs(redis.call('LRANGE', p .. 'queue:' .. conv, 0, ARGV[4] - 1)) do
    local entry = fields(id)
    local theirs = entry.group or ''
    if i > 1 and (theirs == '' or theirs ~= group) then break end
    group = theirs
    local key = entry.claim or ''
    local claim = key ~= '' and redis.call('GET', key) or ''
    if claim ~= '' then
      local read, value = pcall(cjson.decode, claim)
      local state = read and type(value) == 'table' and value.state
      claim = (state == 'done' or state == 'committed' or state == 'unsent') and state or 'running'
    end
    taken[#taken + 1] = {id, redis.call('ZSCORE', p .. 'live', id) or '0', entry.meta or '', redis.call('HGET', p .. 'state', id) or '', claim,
      entry.arrival and redis.call('GET', entry.arrival) or '', key ~= '' and 1 or 0}
  end
  if #taken == 2 then
    redis.call('ZREM', p .. 'due', conv)
    redis.call('HDEL', p .. 'leases', conv)
  else
    redis.call('ZADD', p .. 'due', text(now + ARGV[2]), conv)
    redis.call('HSET', p .. 'leases', conv, taken[2])
    answer[#answer + 1] = taken
  end
end
local next = redis.call('ZRANGE', p .. 'due', 0, 0, 'WITHSCORES')
if next[1] then answer[2] = math.max(0, next[2] - now) end
return answer"""
)

#: Prolongs a lease, and notes states under it. ARGV conversation, lease, lease ms, then (id, state)...  Returns now, 0 when the lease was lost.
SAVE = (
    _DRAIN
    + """
if redis.call('HGET', p .. 'leases', ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('ZADD', p .. 'due', text(now + ARGV[3]), ARGV[1])
for i = 4, #ARGV, 2 do
  if redis.call('ZSCORE', p .. 'live', ARGV[i]) then redis.call('HSET', p .. 'state', ARGV[i], ARGV[i + 1]) end
end
return now"""
)

#: Notes under a lease that an event is about to go to a replica, unless that has enough. ARGV conversation, lease, lease ms, id, state, replica, most
#: Returns now, 0 when the lease was lost or the event is gone, -1 when the replica has enough.
SEND = (
    _DRAIN
    + """
if redis.call('HGET', p .. 'leases', ARGV[1]) ~= ARGV[2] or not redis.call('ZSCORE', p .. 'live', ARGV[4]) then return 0 end
local has = tonumber(redis.call('HGET', p .. 'holding', ARGV[6]) or 0)
if redis.call('HGET', p .. 'held', ARGV[4]) ~= ARGV[6] and has >= tonumber(ARGV[7]) then return -1 end
hold(ARGV[4], ARGV[6])
redis.call('HSET', p .. 'state', ARGV[4], ARGV[5])
redis.call('ZADD', p .. 'due', text(now + ARGV[3]), ARGV[1])
return now"""
)

#: Ends a lease with what became of its events. ARGV conversation, lease, ms until it is due again, low events, low bytes, most dead, most dead bytes,
#: age of the dead (ms), host, then (id, keep | free | forget | dead, state)...; free: kept, and no replica has it
#: Returns {1, how many were forgotten or dead, 1 = the low-water mark was crossed just now}, {0} when the lease was lost.
FINISH = (
    _DRAIN
    + _BURY
    + _LEAVE
    + """
local conv = ARGV[1]
if redis.call('HGET', p .. 'leases', conv) ~= ARGV[2] then return {0} end
local left = 0
for i = 10, #ARGV, 3 do
  local id, verb, state = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if verb == 'keep' or verb == 'free' then
    if verb == 'free' then hold(id, nil) end
    if redis.call('ZSCORE', p .. 'live', id) then redis.call('HSET', p .. 'state', id, state) end
  else
    local bytes = leave(conv, id)
    if bytes then
      left = left + 1
      if verb == 'dead' then
        redis.call('HSET', p .. 'state', id, state)
        redis.call('ZADD', p .. 'dead', text(now), id)
        redis.call('HINCRBY', p .. 'size', 'dead_bytes', bytes)
      else
        remove(id)
      end
    end
  end
end
bury(ARGV[6], ARGV[7], ARGV[8])
redis.call('HDEL', p .. 'leases', conv)
if redis.call('EXISTS', p .. 'queue:' .. conv) == 0 then
  redis.call('ZREM', p .. 'due', conv)
else
  redis.call('ZADD', p .. 'due', text(now + ARGV[3]), conv)
end
local count, total = size()
local low = count <= tonumber(ARGV[4]) and total <= tonumber(ARGV[5]) and redis.call('HDEL', p .. 'size', 'high') == 1
if low then event('ingress_low_water', ARGV[9], {events = count, bytes = total}) end
return {1, left, low and 1 or 0}"""
)

#: Dead letters go to the end of their conversations, as if they had come now. ARGV ids.  Returns those that were dead.
REPLAY = (
    _HEAD
    + """
local answer = {}
for _, id in ipairs(ARGV) do
  local conv = field(id, 'conversation')
  if conv and redis.call('ZREM', p .. 'dead', id) == 1 then
    local bytes = tonumber(field(id, 'bytes') or 0)
    redis.call('HDEL', p .. 'state', id)
    redis.call('ZADD', p .. 'live', text(now), id)
    redis.call('HINCRBY', p .. 'size', 'dead_bytes', -bytes)
    redis.call('HINCRBY', p .. 'size', 'bytes', bytes)
    redis.call('RPUSH', p .. 'queue:' .. conv, id)
    redis.call('ZADD', p .. 'due', 'NX', text(now), conv)
    answer[#answer + 1] = id
  end
end
return answer"""
)

#: Forgets events, waiting or dead. ARGV ids.  Returns those that were there.
DROP = (
    _DRAIN
    + _LEAVE
    + """
local answer = {}
for _, id in ipairs(ARGV) do
  local conv = field(id, 'conversation')
  if conv then
    if redis.call('ZREM', p .. 'dead', id) == 1 then
      redis.call('HINCRBY', p .. 'size', 'dead_bytes', -tonumber(field(id, 'bytes') or 0))
    else
      leave(conv, id)
    end
    remove(id)
    answer[#answer + 1] = id
  end
end
return answer"""
)

#: Buries what is too old, and counts. ARGV most dead, most dead bytes, age of the dead (ms)
#: Returns {now, waiting, bytes, conversations, dead, dead bytes, accepted of the oldest that waits (0 = none), high (1 or 0)}.
LOOK = (
    _DRAIN
    + _BURY
    + """
bury(ARGV[1], ARGV[2], ARGV[3])
local count, total = size()
local oldest = redis.call('ZRANGE', p .. 'live', 0, 0, 'WITHSCORES')
return {now, count, total, redis.call('ZCARD', p .. 'due'), redis.call('ZCARD', p .. 'dead'), tonumber(redis.call('HGET', p .. 'size', 'dead_bytes') or 0),
  tonumber(oldest[2] or 0), tonumber(redis.call('HGET', p .. 'size', 'high') or 0)}"""
)

#: A page of events without their bodies. ARGV live | dead, first rank, last rank, then ids to have these instead
#: Returns {now, {id, accepted or died, meta, state, conversation, bytes}...}.
LIST = (
    _HEAD
    + """
local answer, set, ids = {now}, p .. ARGV[1], {unpack(ARGV, 4)}
if #ids == 0 then ids = redis.call('ZRANGE', set, ARGV[2], ARGV[3]) end
for _, id in ipairs(ids) do
  local at, entry = redis.call('ZSCORE', set, id), fields(id)
  if at and entry.meta then
    answer[#answer + 1] = {id, at, entry.meta, redis.call('HGET', p .. 'state', id) or '', entry.conversation, entry.bytes}
  end
end
return answer"""
)
