-- The state, for the poll of each worker. Writes nothing, but deletes a corrupt state.
--
-- KEYS, ARGV 1-5 and the reply: see common.lua. Version 0 where there is no state.
local state, found = load_state()
state = state or {letter = 'C', version = 0, open_until = 0, opens = 0, reason = ''}
return reply(state, found, 0)
