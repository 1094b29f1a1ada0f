-- A probe whose call goes on keeps its place, unless another was given it. Further argument: 6 token.
-- Returns 1 where it keeps it, else 0.
local window = fields_of(WINDOW)
if not window or not window['p' .. ARGV[6]] then return 0 end
redis.call('HSET', WINDOW, 'p' .. ARGV[6], string.format('%.0f', now + policy.lease_ms))
redis.call('PEXPIRE', WINDOW, string.format('%.0f', 2 * math.max(policy.lease_ms, policy.window_ms)))
redis.call('PEXPIRE', STATE, KEEP_MS)
return 1
