-- Reserve turns of requests and tokens ahead for one worker (generic cell rate algorithm).
--
-- KEYS  1 limit (hash): 'r' and 'k', ms at which all reserved requests and tokens are paid for (the
--         theoretical arrival time of GCRA); 'w<worker>', ms of a worker's last reservation
-- ARGV  1 now in ms (tests) or '' for the server's clock, 2 worker, 3 and 4 requests a minute and
--       their burst, 5 and 6 the same for tokens ('0': no limit), 7 the longest wait in ms,
--       8 and 9 requests needed and wanted, 10 and 11 the same for tokens, 12 and 13 requests and
--       tokens to give back (negative: used beyond the reservation), 14 and 15 ms until requests
--       and tokens are paid for, as far as the worker knows (negative: since when they are)
-- Reply 'held', or 'corrupt' if the key had another type; ms until the needed turns are due; workers
--       of the last minute; for requests, then for tokens: ms from now to the turn before the
--       first, and the number reserved
-- Why   requests and tokens in one script: a turn of one is worth nothing without the other's. A
--       caller gets its future turn at once, and never has to ask again.
local KEY, WORKER = KEYS[1], ARGV[2]
local MINUTE_MS, SEEN_MS, MAX_AHEAD_MS = 60000, 60000, 86400000

local function clock()
  if ARGV[1] ~= '' then return tonumber(ARGV[1]) end
  local time = redis.call('TIME')
  return time[1] * 1000 + time[2] / 1000
end

local now, found = clock(), 'held'
local flat, fields = redis.pcall('HGETALL', KEY), {}
if flat.err then -- the key has another type
  redis.call('DEL', KEY)
  found = 'corrupt'
else
  for at = 1, #flat, 2 do fields[flat[at]] = tonumber(flat[at + 1]) end
end

-- One limit: its field, until when it is paid for, ms a turn, and its burst; nil if there is none.
local function limit_of(field, first, owed)
  local rate = tonumber(ARGV[first])
  if rate <= 0 then return nil end
  local stored = fields[field] or (found == 'corrupt' and now or 0)
  if stored ~= stored or stored > now + MAX_AHEAD_MS then stored = now end -- NaN, or malformed
  local limit = {field = field, interval = MINUTE_MS / rate, burst = tonumber(ARGV[first + 1])}
  -- A reservation reaches no further ahead than the longest wait, and of what is used beyond it one
  -- minute counts. The bound holds where the clock stepped back, so that no wait grows by it.
  local latest = now + tonumber(ARGV[7]) + limit.burst * limit.interval + MINUTE_MS
  -- Redis may have lost what the worker still knows: the later time is the true one.
  limit.paid_until = math.min(math.max(stored, now + tonumber(owed)), latest)
  return limit
end

-- Ms at which so many needed turns begin. Those above a burst add up while none are used: that time
-- counts also before they are needed, else a caller that is rejected would wait as long each time.
local function start_of(limit, needed)
  return math.max(limit.paid_until, now - math.max(needed - limit.burst, 0) * limit.interval)
end

-- Ms until the last of so many turns is due.
local function wait_for(limit, needed, turns)
  return math.max(start_of(limit, needed) + (turns - limit.burst) * limit.interval - now, 0)
end

-- Reserve the wanted turns, or only the needed ones if the others are due too late. Returns ms from
-- now to the turn before the first, and the number.
local function reserve(limit, needed, wanted, max_wait)
  if wait_for(limit, needed, wanted) > max_wait then wanted = needed end
  local first = start_of(limit, needed)
  limit.paid_until = first + wanted * limit.interval
  return first - limit.burst * limit.interval - now, wanted
end

-- Turns given back late were not saved up: later ones have been used since.
local function give_back(limit, turns)
  local least = turns > 0 and math.min(limit.paid_until, now) or -math.huge
  limit.paid_until = math.max(limit.paid_until - turns * limit.interval, least)
end

local requests, tokens = limit_of('r', 3, ARGV[14]), limit_of('k', 5, ARGV[15])
local max_wait = tonumber(ARGV[7])
local wait = 0
if requests then
  give_back(requests, tonumber(ARGV[12]))
  wait = wait_for(requests, tonumber(ARGV[8]), tonumber(ARGV[8]))
end
if tokens then
  give_back(tokens, tonumber(ARGV[13]))
  wait = math.max(wait, wait_for(tokens, tonumber(ARGV[10]), tonumber(ARGV[10])))
end

-- Both or none: see above.
local starts, reserved = {0, 0}, {0, 0}
if wait <= max_wait then
  if requests then
    starts[1], reserved[1] = reserve(requests, tonumber(ARGV[8]), tonumber(ARGV[9]), max_wait)
  end
  if tokens then
    starts[2], reserved[2] = reserve(tokens, tonumber(ARGV[10]), tonumber(ARGV[11]), max_wait)
  end
end

local keep = SEEN_MS
for _, limit in pairs({requests or false, tokens or false}) do
  if limit then
    redis.call('HSET', KEY, limit.field, string.format('%.3f', limit.paid_until))
    keep = math.max(keep, limit.paid_until - now + SEEN_MS)
  end
end
local workers = 1
for field, seen_at in pairs(fields) do
  if string.sub(field, 1, 1) == 'w' and field ~= 'w' .. WORKER then
    if seen_at > now - SEEN_MS and seen_at <= now + SEEN_MS then
      workers = workers + 1
    else
      redis.call('HDEL', KEY, field)
    end
  end
end
redis.call('HSET', KEY, 'w' .. WORKER, string.format('%.0f', now))
redis.call('PEXPIRE', KEY, string.format('%.0f', keep))
return {found, string.format('%.3f', wait), workers,
  string.format('%.3f', starts[1]), string.format('%.0f', reserved[1]),
  string.format('%.3f', starts[2]), string.format('%.0f', reserved[2])}
