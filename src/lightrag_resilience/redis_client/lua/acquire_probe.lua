-- Acquire the permit for one probe, held as a lease.
--
-- KEYS, ARGV 1-5 and the reply: see common.lua.
-- ARGV  6 token of the probe, 7 ms of its lease
-- Reply's own number: ms for which the lease is held; -1 rejected; -2 the circuit is closed. While
--       all permits are held, ms left is until the first lease ends.
-- Why   one script: of all workers together no more probes run than the policy allows.
local state, found = load_or_create()
-- A worker asks only while its own circuit is not closed. If Redis lost the state, go half-open
-- rather than assume closed.
if state.letter == 'C' and found == 'held' then return reply(state, found, -2) end
if state.letter == 'O' and state.open_until > now then return reply(state, found, -1) end
if state.letter ~= 'H' then
  local last = state.last_failure or ''
  if last ~= '' then last = ', the last failure ' .. last end
  enter(state, 'H', 0, 'while probes are under way' .. last)
end
local held, first_ends = count_leases()
-- The policy now wants fewer probes than have succeeded, and no running probe would close it.
if held == 0 and state.probe_successes >= policy.probes then
  enter(state, 'C', 0, 'after its probes succeeded')
  return reply(state, found, -2)
end
-- Successes count too: a further probe could not change the outcome any sooner.
if held + state.probe_successes >= policy.probes then
  state.open_until = first_ends or now -- for the reply only, it is not saved
  return reply(state, found, -1)
end
local lease = math.min(tonumber(ARGV[7]), policy.lease_ms)
redis.call('HSET', WINDOW, 'p' .. ARGV[6], string.format('%.0f', now + lease))
redis.call('PEXPIRE', WINDOW, string.format('%.0f', 2 * math.max(policy.lease_ms, policy.window_ms)))
return reply(state, found, lease)
