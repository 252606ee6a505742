// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

// Lua scripts: each is one atomic step on one conversation. Common names:
//   owner  who holds a lock: one turn of one replica, unique
//   seq    number of the latest turn; it only grows, and is the fencing token: a turn that saw seq may be appended
//          while seq is still the latest and nobody else holds the lock
//   epoch  counts resets; what was said before a reset never comes back
//   idle   index of the conversations that have a history, by the time of their last turn (ms)

const NOW = `
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)`;

/**
 * Takes or keeps the lock and reads the conversation. Idempotent by owner: a lost reply does not lock its sender out.
 * KEYS lock, session, conversation  ARGV owner, leaseMs, ttlSeconds, known "epoch:seq" ("" = none), maxTurns
 * Returns {0, remaining ms} when another owner holds it, {1, epoch, seq} when nothing changed since the known state,
 * else {2, epoch, seq, turns...}.
 */
export const BEGIN = `
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return {0, redis.call('PTTL', KEYS[1])} end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[3])
local s = redis.call('HMGET', KEYS[2], 'epoch', 'turns')
local epoch, seq = s[1] or '0', s[2] or '0'
if epoch .. ':' .. seq == ARGV[4] then return {1, tonumber(epoch), tonumber(seq)} end
local answer = {2, tonumber(epoch), tonumber(seq)}
for _, turn in ipairs(redis.call('LRANGE', KEYS[3], -tonumber(ARGV[5]), -1)) do answer[#answer + 1] = turn end
return answer`;

/**
 * Prolongs a lock. It never takes one: a belated renewal of a turn that has ended must not lock anybody out.
 * KEYS lock  ARGV owner, leaseMs. Returns 1 or 0 (lost).
 */
export const RENEW = `
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0`;

/** KEYS lock  ARGV owner. Returns 1 when it was released. */
export const RELEASE = `
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0`;

/**
 * Appends one turn exactly once and gives the lock back.
 * KEYS conversation, session, seen, lock, idempotency, idle
 * ARGV turn JSON, id, owner, base seq ("" = unknown), epoch ("" = any), ttlSeconds, nowMs, maxTurns,
 *      channel, user, replica, answer JSON ("" = no idempotency key), answer ttl, mode:
 *      "next"  only as the turn after base, while nobody else holds the lock
 *      "kept"  only under the lock; put where its time belongs, and flagged late when others came between
 *      time of the turn (ms), conversation's id
 * Returns {status, seq, late}: committed | duplicate | fenced | discarded (before a reset) | answered (key used).
 */
export const COMMIT = `${NOW}
local function unlock() if redis.call('GET', KEYS[4]) == ARGV[3] then redis.call('DEL', KEYS[4]) end end
local seq = redis.call('ZSCORE', KEYS[3], ARGV[2])
if seq then
  redis.call('EXPIRE', KEYS[3], ARGV[6])
  unlock()
  return {'duplicate', tonumber(seq), 0}
end
local s = redis.call('HMGET', KEYS[2], 'epoch', 'turns')
local late = ARGV[4] ~= '' and (s[2] or '0') ~= ARGV[4]
local owner = redis.call('GET', KEYS[4])
if ARGV[12] ~= '' then
  local answer = redis.call('GET', KEYS[5])
  if answer and cjson.decode(answer).state == 'done' then unlock() return {'answered', 0, 0} end
end
if ARGV[14] == 'next' then
  if late or (owner and owner ~= ARGV[3]) then return {'fenced', 0, 0} end
else
  if owner ~= ARGV[3] then return {'fenced', 0, 0} end
  if ARGV[5] ~= '' and (s[1] or '0') ~= ARGV[5] then unlock() return {'discarded', 0, 0} end
end
local before
if ARGV[14] == 'kept' then
  for i = 1, 200 do
    local other = redis.call('LINDEX', KEYS[1], -i)
    if not other or cjson.decode(other).at <= tonumber(ARGV[15]) then break end
    before = other
  end
  late = late or before ~= nil
end
seq = redis.call('HINCRBY', KEYS[2], 'turns', 1)
local turn = '{"seq":' .. seq .. (late and ',"late":true,' or ',') .. string.sub(ARGV[1], 2)
if before then redis.call('LINSERT', KEYS[1], 'BEFORE', before, turn) else redis.call('RPUSH', KEYS[1], turn) end
redis.call('LTRIM', KEYS[1], -tonumber(ARGV[8]), -1)
redis.call('ZADD', KEYS[3], seq, ARGV[2])
redis.call('ZREMRANGEBYRANK', KEYS[3], 0, -2 * tonumber(ARGV[8]) - 1)
redis.call('HSET', KEYS[2], 'channel', ARGV[9], 'user_id', ARGV[10], 'replica', ARGV[11], 'last_at', ARGV[7])
redis.call('HSETNX', KEYS[2], 'first_at', ARGV[7])
if late then redis.call('HINCRBY', KEYS[2], 'late', 1) end
redis.call('ZADD', KEYS[6], string.format('%.0f', now), ARGV[16])
redis.call('ZREMRANGEBYSCORE', KEYS[6], '-inf', string.format('%.0f', now - ARGV[6] * 1000))
for i = 1, 3 do redis.call('EXPIRE', KEYS[i], ARGV[6]) end
if ARGV[12] ~= '' then redis.call('SET', KEYS[5], ARGV[12], 'EX', ARGV[13]) end
unlock()
return {'committed', seq, late and 1 or 0}`;

/** Forgets a conversation. KEYS conversation, session, seen, idle  ARGV ttlSeconds, id. Returns the new epoch. */
export const RESET = `
redis.call('DEL', KEYS[1], KEYS[3])
redis.call('ZREM', KEYS[4], ARGV[2])
local epoch = redis.call('HINCRBY', KEYS[2], 'epoch', 1)
redis.call('EXPIRE', KEYS[2], ARGV[1])
return epoch`;

/** Keeps the newest turns. KEYS conversation, session, idle  ARGV keep, ttlSeconds, id. Returns {before, after}. */
export const COMPACT = `
local before = redis.call('LLEN', KEYS[1])
local keep = tonumber(ARGV[1])
if keep == 0 then
  redis.call('DEL', KEYS[1])
  redis.call('ZREM', KEYS[3], ARGV[3])
else
  redis.call('LTRIM', KEYS[1], -keep, -1)
end
redis.call('HINCRBY', KEYS[2], 'compactions', 1)
redis.call('EXPIRE', KEYS[2], ARGV[2])
return {before, redis.call('LLEN', KEYS[1])}`;

/**
 * Claims something that must happen once: an idempotency key, a webhook message.
 * KEYS claim  ARGV owner, leaseMs, fingerprint. Returns "" when claimed (or still ours), else the present value.
 */
export const CLAIM = `
local present = redis.call('GET', KEYS[1])
if present then
  local value = cjson.decode(present)
  if value.state ~= 'running' or value.owner ~= ARGV[1] then return present end
end
redis.call('SET', KEYS[1], cjson.encode({state = 'running', owner = ARGV[1], fingerprint = ARGV[3]}), 'PX', ARGV[2])
return ''`;

/** Gives a claim back, or settles it. KEYS claim  ARGV owner, final JSON ("" = give back), ttlSeconds. Returns 0 when it is not the owner's (any more). */
export const SETTLE = `
local present = redis.call('GET', KEYS[1])
if present then
  local value = cjson.decode(present)
  if value.owner and value.owner ~= ARGV[1] then return 0 end
  if value.state ~= 'running' and ARGV[2] == '' then return 0 end
  if value.state == 'done' and cjson.decode(ARGV[2]).state ~= 'done' then return 0 end
end
if ARGV[2] == '' then return redis.call('DEL', KEYS[1]) end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1`;

// The stream of events is the last key.
const EVENT = `
local function event(kind, replica, detail, most, ttl)
  redis.call('XADD', KEYS[#KEYS], 'MAXLEN', '~', most, '*', 'type', kind, 'at', string.format('%.0f', now),
    'replica', replica, 'detail', cjson.encode(detail))
  redis.call('EXPIRE', KEYS[#KEYS], ttl)
end`;

/** Circuits of several providers. KEYS circuits. Returns {state, failures, ms until a trial, ms open} of each. */
export const CIRCUITS = `${NOW}
local answer = {}
for i, key in ipairs(KEYS) do
  local c = redis.call('HMGET', key, 'state', 'failures', 'until', 'since')
  answer[i] = {c[1] or 'closed', tonumber(c[2] or 0), math.max(0, (c[3] or now) - now), now - (c[4] or now)}
end
return answer`;

/**
 * Counts a failure of a provider; a failed trial keeps its circuit open for another period.
 * KEYS circuit, trial, events  ARGV failures that open it, openMs, windowMs (how long failures count), forgetMs,
 *      reason, replica, provider, next provider, trial ("1" = it was one), most events, event ttlSeconds
 * Returns {state, failures, ms until the next trial, ms open, opened (1 = by this failure)}.
 */
export const CIRCUIT_FAILED = `${NOW}${EVENT}
local c = redis.call('HMGET', KEYS[1], 'state', 'until', 'since')
if c[1] then
  if ARGV[9] == '1' then
    redis.call('HSET', KEYS[1], 'state', 'open', 'until', string.format('%.0f', now + ARGV[2]), 'reason', ARGV[5])
    redis.call('DEL', KEYS[2])
    c[2] = now + ARGV[2]
  end
  return {'open', tonumber(redis.call('HGET', KEYS[1], 'failures')), math.max(0, c[2] - now), now - c[3], 0}
end
local failures = redis.call('HINCRBY', KEYS[1], 'failures', 1)
redis.call('HSET', KEYS[1], 'reason', ARGV[5])
if failures < tonumber(ARGV[1]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return {'closed', failures, 0, 0, 0}
end
redis.call('HSET', KEYS[1], 'state', 'open', 'since', string.format('%.0f', now),
  'until', string.format('%.0f', now + ARGV[2]), 'replica', ARGV[6])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
event('provider_switched', ARGV[6], {from = ARGV[7], to = ARGV[8], reason = ARGV[5]}, ARGV[10], ARGV[11])
return {'open', failures, tonumber(ARGV[2]), 0, 1}`;

/**
 * Lets one replica at a time try an open circuit whose time has come.
 * KEYS circuit, trial  ARGV replica, leaseMs. Returns {state, failures, ms until the next trial, ms open, mine}.
 */
export const CIRCUIT_TRIAL = `${NOW}
local c = redis.call('HMGET', KEYS[1], 'state', 'failures', 'until', 'since')
if not c[1] then return {'closed', tonumber(c[2] or 0), 0, 0, 0} end
local wait, open = c[3] - now, now - c[4]
if wait > 0 then return {c[1], tonumber(c[2]), wait, open, 0} end
if redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then
  redis.call('HSET', KEYS[1], 'state', 'half-open')
  return {'half-open', tonumber(c[2]), 0, open, 1}
end
return {c[1], tonumber(c[2]), math.max(1, redis.call('PTTL', KEYS[2])), open, 0}`;

/**
 * The provider has answered.
 * KEYS circuit, trial, events  ARGV replica, provider, provider that stood in, most events, event ttlSeconds
 * Returns how long the circuit was open (ms), -1 when it was not.
 */
export const CIRCUIT_CLOSED = `${NOW}${EVENT}
local c = redis.call('HMGET', KEYS[1], 'state', 'since')
redis.call('DEL', KEYS[1], KEYS[2])
if not c[1] then return -1 end
local open = now - c[2]
event('provider_back', ARGV[1], {to = ARGV[2], from = ARGV[3], after_ms = open}, ARGV[4], ARGV[5])
return open`;

/**
 * Takes one token from every bucket, or none from any.
 * KEYS buckets  ARGV for each bucket: tokens a minute, most tokens. Returns ms until all have one; 0 = taken.
 */
export const TAKE_TOKENS = `${NOW}
local wait, tokens = 0, {}
for i, key in ipairs(KEYS) do
  local rate, burst = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  local b = redis.call('HMGET', key, 'tokens', 'at')
  tokens[i] = b[1] and math.min(burst, b[1] + math.max(0, now - b[2]) * rate / 60000) or burst
  wait = math.max(wait, (1 - tokens[i]) * 60000 / rate)
end
if wait > 0 then return math.ceil(wait) end
for i, key in ipairs(KEYS) do
  redis.call('HSET', key, 'tokens', string.format('%.6f', tokens[i] - 1), 'at', string.format('%.0f', now))
  -- Full again by then: a bucket that is gone and one that is full are the same.
  redis.call('PEXPIRE', key, math.ceil(ARGV[2 * i] * 60000 / ARGV[2 * i - 1]) + 1000)
end
return 0`;

/**
 * Makes room in a full memory: deletes the histories that were idle for longest, one after the other, until there is
 * enough. Numbers and journals stay, so such a conversation goes on with an empty history. One whose lock is held is
 * passed over. Several replicas may do this at once: each deletion looks at the memory anew.
 * KEYS idle  ARGV above (percent of maxmemory; with less in use nothing is done), until (percent), idleMs, most to look
 *      at, how many of the index to leave out, names without id: of conversations, of sessions, of locks
 * Returns {bytes in use, maxmemory (0 = unlimited), dropped, bytes freed, passed over, 1 = not enough and more to see}.
 */
export const MAKE_ROOM = `#!lua flags=allow-oom${NOW}
local function memory()
  local info = redis.call('INFO', 'memory')
  local function bytes(name) return tonumber(string.match(info, '\\n' .. name .. ':(%d+)')) end
  -- As Redis itself compares them.
  return bytes('used_memory') - bytes('mem_not_counted_for_evict'), bytes('maxmemory')
end
local used, max = memory()
local before, dropped, passed = used, 0, 0
if max == 0 or used <= max * ARGV[1] / 100 then return {used, max, 0, 0, 0, 0} end
local enough = max * ARGV[2] / 100
local oldest = string.format('%.0f', now - ARGV[3])
local ids = redis.call('ZRANGE', KEYS[1], '-inf', oldest, 'BYSCORE', 'LIMIT', ARGV[5], ARGV[4])
for _, id in ipairs(ids) do
  if used <= enough then break end
  if redis.call('GET', ARGV[8] .. id) then
    passed = passed + 1
  else
    redis.call('ZREM', KEYS[1], id)
    if redis.call('DEL', ARGV[6] .. id) == 1 then
      dropped = dropped + 1
      if redis.call('HGET', ARGV[7] .. id, 'turns') then redis.call('HINCRBY', ARGV[7] .. id, 'dropped', 1) end
    end
    used = memory()
  end
end
local more = used > enough and #ids == tonumber(ARGV[4])
return {used, max, dropped, math.max(0, before - used), passed, more and 1 or 0}`;

/** Tells of dropped histories. KEYS events  ARGV replica, conversations, bytes, most events, event ttlSeconds. */
export const DROPPED = `#!lua flags=allow-oom${NOW}${EVENT}
local detail = {conversations = tonumber(ARGV[2]), bytes = tonumber(ARGV[3])}
event('conversations_dropped', ARGV[1], detail, ARGV[4], ARGV[5])`;

// Scheduled jobs. A slot is the time (ms) that a run was due at; it has one claim over all replicas, which is never given
// back: {state: running | done | unfinished | missed, owner, run, at, until, ok}. The job's hash tells of its latest slot.

/**
 * Claims a slot of a job, and tells of earlier ones that nobody ended or nobody had. Idempotent by run: a lost reply does
 * not lose the slot. Once a slot was claimed no earlier one is, so a late or restarted replica repeats nothing.
 * KEYS claim, job, open (slots that are being run, by the time until which that may last), events
 * ARGV slot, job, replica, run, longest run (ms), claim ttlSeconds, job ttlSeconds, schedule, names of claims without
 *      slot, most events, event ttlSeconds, slots that were due here and not claimed by this replica...
 * Returns {1 when it is ours, unfinished ones told of, missed ones told of}.
 */
export const CRON_CLAIM = `${NOW}${EVENT}
local slot = tonumber(ARGV[1])
local job = redis.call('HMGET', KEYS[2], 'slot', 'next', 'schedule')
local last = tonumber(job[1] or 0)
local unfinished, missed = 0, 0
for _, open in ipairs(redis.call('ZRANGE', KEYS[3], '-inf', string.format('%.0f', now), 'BYSCORE')) do
  redis.call('ZREM', KEYS[3], open)
  local present = redis.call('GET', ARGV[9] .. open)
  local claim = present and cjson.decode(present) or {}
  claim.state = 'unfinished'
  redis.call('SET', ARGV[9] .. open, cjson.encode(claim), 'EX', ARGV[6])
  if job[1] == open then redis.call('HSET', KEYS[2], 'state', 'unfinished') end
  event('cron_unfinished', ARGV[3], {job = ARGV[2], slot = tonumber(open), owner = claim.owner}, ARGV[10], ARGV[11])
  unfinished = unfinished + 1
end
-- Of slots before the last one it is known only as long as their claims are kept whether somebody had them.
local function tell(due)
  local n = tonumber(due)
  if n >= slot or (n <= last and now - n > ARGV[6] * 1000 - 60000) then return end
  local claim = cjson.encode({state = 'missed', at = now})
  if not redis.call('SET', ARGV[9] .. due, claim, 'NX', 'EX', ARGV[6]) then return end
  event('cron_missed', ARGV[3], {job = ARGV[2], slot = n}, ARGV[10], ARGV[11])
  missed = missed + 1
end
if (job[2] or '') ~= '' and job[3] == ARGV[8] and tonumber(job[2]) > last then tell(job[2]) end
for i = 12, #ARGV do tell(ARGV[i]) end
local present = redis.call('GET', KEYS[1])
if present then
  local claim = cjson.decode(present)
  return {claim.state == 'running' and claim.run == ARGV[4] and 1 or 0, unfinished, missed}
end
if slot <= last then return {0, unfinished, missed} end
local ends = string.format('%.0f', now + ARGV[5])
local claim = {state = 'running', owner = ARGV[3], run = ARGV[4], at = now, ['until'] = tonumber(ends)}
redis.call('SET', KEYS[1], cjson.encode(claim), 'EX', ARGV[6])
redis.call('HSET', KEYS[2], 'slot', ARGV[1], 'owner', ARGV[3], 'state', 'running', 'at', string.format('%.0f', now),
  'next', '', 'schedule', ARGV[8])
redis.call('ZADD', KEYS[3], ends, ARGV[1])
for i = 2, 3 do redis.call('EXPIRE', KEYS[i], ARGV[7]) end
return {1, unfinished, missed}`;

/**
 * The run of a claimed slot has ended; also when it was told of as unfinished meanwhile.
 * KEYS claim, job, open  ARGV slot, run, "1" when it succeeded, next slot ("" = unknown), claim ttlSeconds
 * Returns 1, or 0 when the claim is gone or somebody else's.
 */
export const CRON_DONE = `
local present = redis.call('GET', KEYS[1])
local claim = present and cjson.decode(present) or {}
if claim.run ~= ARGV[2] then return 0 end
claim.state = 'done'
claim.ok = ARGV[3] == '1'
redis.call('SET', KEYS[1], cjson.encode(claim), 'EX', ARGV[5])
redis.call('ZREM', KEYS[3], ARGV[1])
if redis.call('HGET', KEYS[2], 'slot') == ARGV[1] then
  redis.call('HSET', KEYS[2], 'state', claim.ok and 'done' or 'failed', 'next', ARGV[4])
end
return 1`;
