-- A place for a probe, if the break is over and one is free. Further argument: 6 token.
-- The last number of the reply: -1 refused, -2 closed, else milliseconds for which the lease holds.
-- Of a refusal while probes are out, the reply's remaining time is when the first lease lapses.
local state, found = current()
-- A worker that asks does not hold a closed circuit: where state was lost, one is tried before it is trusted.
if state.st == 'C' and found == 'held' then return reply(state, found, -2) end
if state.st == 'O' and state.till > now then return reply(state, found, -1) end
if state.st ~= 'H' then
  local last = state.last or ''
  if last ~= '' then last = ', the last failure ' .. last end
  enter(state, 'H', 0, 'while probes are under way' .. last)
end
local held, lapses = leases()
-- It wants fewer probes than it did, and none is out whose end would close it.
if held == 0 and state.proven >= policy.probes then
  enter(state, 'C', 0, 'after its probes succeeded')
  return reply(state, found, -2)
end
if held + state.proven >= policy.probes then
  state.till = lapses or now
  return reply(state, found, -1)
end
redis.call('HSET', WINDOW, 'p' .. ARGV[6], string.format('%.0f', now + policy.lease_ms))
redis.call('PEXPIRE', WINDOW, string.format('%.0f', 2 * math.max(policy.lease_ms, policy.window_ms)))
return reply(state, found, policy.lease_ms)
