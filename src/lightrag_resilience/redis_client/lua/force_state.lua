-- Force a state for the whole cluster, on an operator's command.
--
-- KEYS, ARGV 1-5 and the reply: see common.lua.
-- ARGV  6 state, 7 ms to stay open, 8 reason
local state, found = load_or_create()
state.last_failure = ''
if ARGV[6] == 'O' then
  if state.letter ~= 'O' then state.opens = state.opens + 1 end
  enter(state, 'O', now + tonumber(ARGV[7]), ARGV[8])
else
  enter(state, ARGV[6], 0, ARGV[8])
  if ARGV[6] == 'C' then redis.call('DEL', WINDOW) end -- evidence, too, begins anew
end
return reply(state, found, 0)
