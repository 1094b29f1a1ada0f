-- The state and what led to it, for operators. Writes nothing, but deletes a corrupt state.
--
-- KEYS, ARGV 1-5 and the reply: see common.lua.
-- Reply's further parts: calls, failed and slow calls of the window, workers that reported, probes
--       under way, ms since the outage began or ended ('' if unknown), a flat list of causes and
--       counts, successes since the last failure, the last failure.
local state, found = load_state()
state = state or {letter = 'C', version = 0, open_until = 0, opens = 0, reason = ''}
-- The window ends with the last report, not now: a dependency that gets no calls shows how its last
-- calls ended, which is what the next one has to expect.
local window, newest = fields_of(WINDOW) or {}, 0
for index = 0, SLICES - 1 do
  newest = math.max(newest, whole(window['n' .. index]) or 0)
end
newest = math.min(newest, math.floor(now / SLICE_MS)) -- the clock may have stepped back

-- Sums of forged fields may pass the bound that each field keeps; the worker's parser rejects those.
local function bounded(number) return string.format('%.0f', math.min(number, MAX_WHOLE - 1)) end

local sums, causes, answer = sum(window, newest), {}, reply(state, found, 0)
for index = 0, SLICES - 1 do
  local number = whole(window['n' .. index])
  if number and number > newest - SLICES and number <= newest then
    for cause, count in pairs(causes_in(window['e' .. index])) do
      causes[cause] = (causes[cause] or 0) + count
    end
  end
end
for _, number in ipairs({sums.c, sums.f, sums.s, sums.workers, (count_leases(true))}) do
  table.insert(answer, bounded(number))
end
local since = state.since or 0
table.insert(answer, since > 0 and string.format('%.0f', math.max(now - since, 0)) or '')
local flat = {}
for cause, count in pairs(causes) do
  table.insert(flat, cause)
  table.insert(flat, bounded(count))
end
table.insert(answer, flat)
table.insert(answer, bounded(whole(window.r) or 0))
table.insert(answer, clip(window.l))
return answer
