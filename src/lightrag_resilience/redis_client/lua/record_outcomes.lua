-- Outcomes of one worker since its last report. Further arguments: 6 milliseconds left of an open
-- state it holds (0: none), 7 breaks in a row, 8 batch, 9 calls, 10 failed, 11 slow, 12 why it
-- tripped by itself ('' if not), 13 how many failed by what, also without a verdict, as JSON, 14 the
-- last of these ('' if none), then a token and a verdict for each probe: 'ok'; 'met', milliseconds
-- and what it met, where it was answered and not served; or why it was no recovery.
local left, breaks, batch = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local calls, failed, slow = tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11])
local tripped, causes, last, FIRST = ARGV[12], causes_in(ARGV[13]), ARGV[14], 15
local MOST_CAUSES = 8 -- of a slice; others are one
local SETTLED_MS = 5000 -- after which a worker that calls no more is forgotten

local function is_repeated(window)
  local last = whole(string.match(window['q' .. WORKER] or '', '^(%d+)'))
  return last ~= nil and batch <= last
end

-- Successes since the last failure. There is no such run while calls of some worker fail: those of
-- the others may be older, as reports gather calls, or go another way.
local function run_on(window)
  redis.call('HDEL', WINDOW, 'z' .. WORKER)
  for field, failed_at in pairs(window) do
    if string.sub(field, 1, 1) == 'z' and field ~= 'z' .. WORKER then
      if now - (whole(failed_at) or 0) <= SETTLED_MS then return end
      redis.call('HDEL', WINDOW, field)
    end
  end
  redis.call('HSET', WINDOW, 'r', string.format('%.0f', (whole(window.r) or 0) + calls))
end

-- Add what failures looked like to the present slice.
local function note(window, at)
  if next(causes) == nil then return run_on(window) end
  local seen, count = causes_in(window['e' .. at]), 0
  for _ in pairs(seen) do count = count + 1 end
  for cause, more in pairs(causes) do
    if not seen[cause] then
      if count < MOST_CAUSES then count = count + 1 else cause = 'other' end
    end
    seen[cause] = (seen[cause] or 0) + more
  end
  window.l = last
  redis.call('HSET', WINDOW, 'e' .. at, cjson.encode(seen), 'r', 0, 'l', last,
    'z' .. WORKER, string.format('%.0f', now))
end

-- Add the outcomes to the present slice, and return the sums of the window.
local function count(window)
  local slice = math.floor(now / SLICE_MS)
  local at = slice % SLICES
  if window['n' .. at] ~= tostring(slice) then
    window['n' .. at], window['c' .. at], window['f' .. at], window['s' .. at] = slice, 0, 0, 0
    window['e' .. at] = nil
    redis.call('HDEL', WINDOW, 'e' .. at)
  end
  for field, more in pairs({c = calls, f = failed, s = slow}) do
    window[field .. at] = (whole(window[field .. at]) or 0) + more
  end
  note(window, at)
  window['q' .. WORKER] = string.format('%.0f %.0f', batch, slice)
  if failed > 0 or slow > 0 then
    window['t' .. WORKER] = tostring(slice)
    redis.call('HSET', WINDOW, 't' .. WORKER, slice)
  end
  redis.call('HSET', WINDOW, 'n' .. at, slice, 'c' .. at, window['c' .. at],
    'f' .. at, window['f' .. at], 's' .. at, window['s' .. at], 'q' .. WORKER, window['q' .. WORKER])
  redis.call('PEXPIRE', WINDOW, string.format('%.0f', math.max(KEEP_MS, 2 * policy.window_ms)))
  redis.call('PEXPIRE', STATE, KEEP_MS)
  for field, last in pairs(window) do
    if string.sub(field, 1, 1) == 'q' then
      local seen = whole(string.match(last, '(%d+)$')) or 0
      if seen <= slice - 2 * SLICES then
        redis.call('HDEL', WINDOW, field, 't' .. string.sub(field, 2))
      end
    end
  end
  return sum(window, slice)
end

local function judge(state, sums, window)
  state.last = short(window.l)
  local the_last = ''
  if state.last ~= '' then the_last = ', the last ' .. state.last end
  if tripped ~= '' and policy.quorum <= 1 then return open(state, tripped) end
  if sums.witnesses < policy.quorum or sums.c < policy.min_calls then return end
  if sums.f / sums.c >= policy.failure_rate then
    open(state, string.format('after %.0f of %.0f calls failed in %.0f workers', sums.f, sums.c,
      sums.witnesses) .. the_last)
  elseif sums.s / sums.c >= policy.slow_rate then
    open(state, string.format('after %.0f of %.0f calls were slow', sums.s, sums.c))
  end
end

-- What one probe showed.
local function conclude(state, verdict)
  local pause, met = string.match(verdict, '^met (%d+) (.*)$')
  if verdict == 'ok' then
    state.proven = state.proven + 1
    save(state)
    if state.proven >= policy.probes then enter(state, 'C', 0, 'after its probes succeeded') end
  elseif pause then
    state.last = met
    reopen(state, tonumber(pause), 'after a probe met ' .. met)
  else
    state.last = string.match(verdict, '^failed with (.*)$') or state.last
    open(state, 'after a probe ' .. verdict)
  end
end

local function judge_probes(state)
  leases()
  for at = FIRST, #ARGV, 2 do
    local held = redis.call('HDEL', WINDOW, 'p' .. ARGV[at])
    if held == 1 and state.st == 'H' then conclude(state, ARGV[at + 1]) end
  end
end

-- Where the half-open state was lost with its leases, what the probes showed still holds.
local function believe_probes(state)
  for at = FIRST, #ARGV, 2 do
    if ARGV[at + 1] ~= 'ok' then return conclude(state, ARGV[at + 1]) end
  end
  enter(state, 'C', 0, 'after its probes succeeded')
end

local state, found = current()
local is_newest = found ~= 'held' or KNOWN == state.ver
-- A worker that knows no version is new here, and what it has seen is recent.
local is_current = is_newest or KNOWN == 0
-- What a worker decided while Redis was away holds, unless the others have decided since.
if left > 0 and is_newest and state.st ~= 'O' then
  state.opens = breaks
  enter(state, 'O', now + left, tripped)
elseif found ~= 'held' and #ARGV >= FIRST and state.st ~= 'O' then
  believe_probes(state)
elseif state.st == 'H' then
  judge_probes(state)
elseif state.st == 'C' and is_current and (calls > 0 or tripped ~= '' or next(causes)) then
  local window = fields_of(WINDOW)
  if not window then
    redis.call('DEL', WINDOW)
    window, found = {}, 'corrupt'
  end
  if not is_repeated(window) then judge(state, count(window), window) end
end
return reply(state, found, 0)
