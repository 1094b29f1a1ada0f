-- A worker is there. Key: all workers. Arguments: 1 worker, 2 milliseconds for which it is seen.
-- Returns how many there are.
local KEY = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local removed = redis.pcall('ZREMRANGEBYSCORE', KEY, '-inf', now)
if type(removed) == 'table' then redis.call('DEL', KEY) end -- not ours
-- Nor is what would be seen for longer, unless the clock has stepped back.
redis.call('ZREMRANGEBYSCORE', KEY, '(' .. now + 2 * tonumber(ARGV[2]), '+inf')
redis.call('ZADD', KEY, now + tonumber(ARGV[2]), ARGV[1])
redis.call('PEXPIRE', KEY, ARGV[2])
return redis.call('ZCARD', KEY)
