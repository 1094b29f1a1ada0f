-- Register a worker for a while and count all workers.
--
-- KEYS  1 sorted set: worker -> ms at which it counts no more
-- ARGV  1 worker, 2 ms for which it counts
-- Reply the number of workers
-- Why   each takes its share of limits and retry budgets; a worker that died drops out by itself.
local KEY = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local removed = redis.pcall('ZREMRANGEBYSCORE', KEY, '-inf', now)
if type(removed) == 'table' then redis.call('DEL', KEY) end -- an error: the key has another type
-- A score further ahead than a worker writes is malformed, or the clock stepped back: the worker
-- registers again within seconds.
redis.call('ZREMRANGEBYSCORE', KEY, '(' .. now + 2 * tonumber(ARGV[2]), '+inf')
redis.call('ZADD', KEY, now + tonumber(ARGV[2]), ARGV[1])
redis.call('PEXPIRE', KEY, ARGV[2])
return redis.call('ZCARD', KEY)
