-- Release the permit of a probe that ended without a verdict, so that another may run at once.
--
-- KEYS and ARGV 1-5: see common.lua.
-- ARGV  6 token of the probe
-- Reply 1 if it was held, else 0
count_leases()
return redis.call('HDEL', WINDOW, 'p' .. ARGV[6])
