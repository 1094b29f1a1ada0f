-- Work that one worker does at a time. Key: a hash of workers, each with the time its lease ends.
-- Arguments: 1 worker, 2 milliseconds it holds the lease from now on, 0 to give it back. Returns 0
-- where it is (or was) this worker's, else the milliseconds until the last other lease ends.
local KEY, WORKER, HELD = KEYS[1], ARGV[1], tonumber(ARGV[2])
local LONGEST = 60000
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local leases = redis.pcall('HGETALL', KEY)
if leases.err then -- not ours
  redis.call('DEL', KEY)
  leases = {}
end
local wait, mine = 0, false
for at = 1, #leases, 2 do
  local left = (tonumber(leases[at + 1]) or 0) - now
  if not (left > 0 and left <= LONGEST) then -- it has ended, or would never
    redis.call('HDEL', KEY, leases[at])
  elseif leases[at] == WORKER then
    mine = true
  else
    wait = math.max(wait, left)
  end
end
if HELD == 0 then
  redis.call('HDEL', KEY, WORKER)
  return 0
end
if wait > 0 and not mine then return math.ceil(wait) end
redis.call('HSET', KEY, WORKER, string.format('%.0f', now + HELD))
redis.call('PEXPIRE', KEY, LONGEST)
return 0
