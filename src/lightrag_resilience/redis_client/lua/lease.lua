-- Acquire, renew or release the lease of work that one worker does at a time.
--
-- KEYS  1 hash: worker -> ms at which its lease ends
-- ARGV  1 worker, 2 ms to hold the lease from now on, 0 to release it
-- Reply 0 if this worker holds (or released) it, else ms until the last other lease ends
-- Why   a hash: a holder that Redis lost, or that took over while another was suspended, is
--       recognised by its own field, and a rejected worker gets the time left in the same trip.
local KEY, WORKER, HOLD_MS = KEYS[1], ARGV[1], tonumber(ARGV[2])
local MAX_MS = 60000
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local leases = redis.pcall('HGETALL', KEY)
if leases.err then -- the key has another type
  redis.call('DEL', KEY)
  leases = {}
end
local wait, is_mine = 0, false
for at = 1, #leases, 2 do
  local left = (tonumber(leases[at + 1]) or 0) - now
  -- Ended; or malformed, or written before the clock stepped back, and would never end.
  if not (left > 0 and left <= MAX_MS) then
    redis.call('HDEL', KEY, leases[at])
  elseif leases[at] == WORKER then
    is_mine = true
  else
    wait = math.max(wait, left)
  end
end
if HOLD_MS == 0 then
  redis.call('HDEL', KEY, WORKER)
  return 0
end
if wait > 0 and not is_mine then return math.ceil(wait) end
redis.call('HSET', KEY, WORKER, string.format('%.0f', now + HOLD_MS))
redis.call('PEXPIRE', KEY, MAX_MS)
return 0
