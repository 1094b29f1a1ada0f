-- The state as it stands; changes nothing, but for what is corrupt. Version 0 where there is none.
local state, found = load_state()
if not state then return reply({st = 'C', ver = 0, till = 0, opens = 0, why = ''}, found, 0) end
return reply(state, found, 0)
