-- The state and what led to it, for people; changes nothing, but for what is corrupt. After the
-- reply that all scripts give: calls, failed and slow of the window, workers that reported, probes,
-- and milliseconds since it broke or was well again, or '' where that is not known.
local state, found = load_state()
state = state or {st = 'C', ver = 0, till = 0, opens = 0, why = ''}
local sums = sum(fields_of(WINDOW) or {}, math.floor(now / SLICE_MS))
local answer = reply(state, found, 0)
for _, number in ipairs({sums.c, sums.f, sums.s, sums.workers, (leases(true))}) do
  -- No worker counts so far: a sum of what is none of ours.
  table.insert(answer, string.format('%.0f', math.min(number, MOST - 1)))
end
local since = state.since or 0
table.insert(answer, since > 0 and string.format('%.0f', math.max(now - since, 0)) or '')
return answer
