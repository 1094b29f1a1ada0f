-- A task that one worker does at a time. Key: the task. Arguments: 1 worker, 2 milliseconds it is
-- held from now on, 0 to give it back. Returns 1 where it is (or was) this worker's, else 0.
local KEY, WORKER, HELD = KEYS[1], ARGV[1], tonumber(ARGV[2])
local holder = redis.pcall('GET', KEY)
if type(holder) == 'table' then -- none of ours
  redis.call('DEL', KEY)
  holder = false
end
if holder and holder ~= WORKER then return 0 end
if HELD > 0 then
  redis.call('SET', KEY, WORKER, 'PX', HELD)
elseif holder then
  redis.call('DEL', KEY)
end
return 1
