-- Turns of requests and tokens, booked ahead for one worker by the generic cell rate algorithm.
-- Key: the limit. Arguments: 1 milliseconds to take for now (tests) or '' for the server's clock,
-- 2 worker, 3 and 4 requests a minute and at once, 5 and 6 the same for tokens ('0': no limit),
-- 7 milliseconds that a turn may be away, 8 and 9 requests needed and wanted, 10 and 11 the same
-- for tokens, 12 and 13 requests and tokens to give back (negative: used beyond what was booked),
-- 14 and 15 milliseconds until requests and tokens are paid for, as far as the worker knows.
-- Fields: 'r' and 'k', the milliseconds at which all that was booked is paid for; 'w' and a worker,
-- when it was last here.
local KEY, WORKER = KEYS[1], ARGV[2]
local MINUTE_MS, SEEN_MS, LONGEST_MS = 60000, 60000, 86400000

local function clock()
  if ARGV[1] ~= '' then return tonumber(ARGV[1]) end
  local time = redis.call('TIME')
  return time[1] * 1000 + time[2] / 1000
end

local now, found = clock(), 'held'
local flat, fields = redis.pcall('HGETALL', KEY), {}
if flat.err then
  redis.call('DEL', KEY)
  found = 'corrupt'
else
  for at = 1, #flat, 2 do fields[flat[at]] = tonumber(flat[at + 1]) end
end

-- One line of turns: when it is paid for, how long each takes, and how many may go at once.
local function line(field, first, owed)
  local rate = tonumber(ARGV[first])
  if rate <= 0 then return nil end
  local stored = fields[field] or 0
  if stored ~= stored or stored > now + LONGEST_MS then stored = 0 end
  local made = {field = field, each = MINUTE_MS / rate, burst = tonumber(ARGV[first + 1])}
  -- Nothing is booked further ahead, and of what is used beyond what was booked a minute counts: a
  -- clock that steps back makes nothing wait for longer.
  local latest = now + tonumber(ARGV[7]) + made.burst * made.each + MINUTE_MS
  made.paid = math.min(math.max(stored, now + tonumber(owed)), latest)
  return made
end

-- Milliseconds until the last of so many turns.
local function wait(made, turns)
  return math.max(made.paid + (turns - made.burst) * made.each - now, 0)
end

-- Take what is wanted, or what is needed where that is too far away; the turn before the first.
local function take(made, needed, wanted, longest)
  if wait(made, wanted) > longest then wanted = needed end
  local start = made.paid - made.burst * made.each - now
  made.paid = made.paid + wanted * made.each
  return start, wanted
end

local function give_back(made, turns)
  made.paid = math.max(made.paid - turns * made.each, now)
end

local requests, tokens = line('r', 3, ARGV[14]), line('k', 5, ARGV[15])
local longest = tonumber(ARGV[7])
local away = 0
if requests then
  give_back(requests, tonumber(ARGV[12]))
  away = wait(requests, tonumber(ARGV[8]))
end
if tokens then
  give_back(tokens, tonumber(ARGV[13]))
  away = math.max(away, wait(tokens, tonumber(ARGV[10])))
end

local starts, taken = {0, 0}, {0, 0}
if away <= longest then
  if requests then
    starts[1], taken[1] = take(requests, tonumber(ARGV[8]), tonumber(ARGV[9]), longest)
  end
  if tokens then
    starts[2], taken[2] = take(tokens, tonumber(ARGV[10]), tonumber(ARGV[11]), longest)
  end
end

local keep = SEEN_MS
for _, made in pairs({requests or false, tokens or false}) do
  if made then
    redis.call('HSET', KEY, made.field, string.format('%.3f', made.paid))
    keep = math.max(keep, made.paid - now + SEEN_MS)
  end
end
local workers = 1
for field, seen in pairs(fields) do
  if string.sub(field, 1, 1) == 'w' and field ~= 'w' .. WORKER then
    if seen > now - SEEN_MS and seen <= now + SEEN_MS then
      workers = workers + 1
    else
      redis.call('HDEL', KEY, field)
    end
  end
end
redis.call('HSET', KEY, 'w' .. WORKER, string.format('%.0f', now))
redis.call('PEXPIRE', KEY, string.format('%.0f', keep))
return {found, string.format('%.3f', away), workers,
  string.format('%.3f', starts[1]), string.format('%.0f', taken[1]),
  string.format('%.3f', starts[2]), string.format('%.0f', taken[2])}
