-- Renew the lease of a probe whose call still runs, so that a slow recovery is not probed twice.
--
-- KEYS and ARGV 1-5: see common.lua.
-- ARGV  6 token of the probe, 7 ms of its lease
-- Reply 1 if renewed; 0 if the lease had ended, as its permit may be another probe's by now
local window = fields_of(WINDOW)
if not window or not window['p' .. ARGV[6]] then return 0 end
redis.call('HSET', WINDOW, 'p' .. ARGV[6], string.format('%.0f', now + math.min(tonumber(ARGV[7]), policy.lease_ms)))
redis.call('PEXPIRE', WINDOW, string.format('%.0f', 2 * math.max(policy.lease_ms, policy.window_ms)))
redis.call('PEXPIRE', STATE, KEEP_MS) -- as long as a call may last, so must the half-open state
return 1
