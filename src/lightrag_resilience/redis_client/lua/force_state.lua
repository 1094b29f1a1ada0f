-- A change by hand, for the whole cluster. Further arguments: 6 state, 7 milliseconds to stay open,
-- 8 why.
local state, found = current()
state.last = ''
if ARGV[6] == 'O' then
  if state.st ~= 'O' then state.opens = state.opens + 1 end
  enter(state, 'O', now + tonumber(ARGV[7]), ARGV[8])
else
  enter(state, ARGV[6], 0, ARGV[8])
end
return reply(state, found, 0)
