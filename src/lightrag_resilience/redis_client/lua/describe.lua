-- The state and what led to it, for people; changes nothing, but for what is corrupt. After the
-- reply that all scripts give: calls, failed and slow of the window, workers that reported, probes,
-- milliseconds since it broke or was well again, or '' where that is not known; how many failed by
-- what, successes since the last failure, and what that looked like. The window ends with the last
-- report: what the last calls met is what the next has to expect.
local state, found = load_state()
state = state or {st = 'C', ver = 0, till = 0, opens = 0, why = ''}
local window, newest = fields_of(WINDOW) or {}, 0
for index = 0, SLICES - 1 do
  newest = math.max(newest, whole(window['n' .. index]) or 0)
end
newest = math.min(newest, math.floor(now / SLICE_MS))

-- No worker counts so far: a sum of what is not ours.
local function shown(number) return string.format('%.0f', math.min(number, MOST - 1)) end

local sums, causes, answer = sum(window, newest), {}, reply(state, found, 0)
for index = 0, SLICES - 1 do
  local number = whole(window['n' .. index])
  if number and number > newest - SLICES and number <= newest then
    for cause, count in pairs(causes_in(window['e' .. index])) do
      causes[cause] = (causes[cause] or 0) + count
    end
  end
end
for _, number in ipairs({sums.c, sums.f, sums.s, sums.workers, (leases(true))}) do
  table.insert(answer, shown(number))
end
local since = state.since or 0
table.insert(answer, since > 0 and string.format('%.0f', math.max(now - since, 0)) or '')
local flat = {}
for cause, count in pairs(causes) do
  table.insert(flat, cause)
  table.insert(flat, shown(count))
end
table.insert(answer, flat)
table.insert(answer, shown(whole(window.r) or 0))
table.insert(answer, short(window.l))
return answer
