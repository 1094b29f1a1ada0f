-- Outcomes of one worker since its last report. Further arguments: 6 milliseconds left of an open
-- state it holds (0: none), 7 breaks in a row, 8 batch, 9 calls, 10 failed, 11 slow, 12 why it
-- tripped by itself ('' if not), then a token and a verdict for each probe: 'ok' or why not.
local left, breaks, batch = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local calls, failed, slow = tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11])
local tripped = ARGV[12]

local function is_repeated(window)
  local last = whole(string.match(window['q' .. WORKER] or '', '^(%d+)'))
  return last ~= nil and batch <= last
end

-- Add the outcomes to the present slice, and return the sums of the window.
local function count(window)
  local slice = math.floor(now / SLICE_MS)
  local at = slice % SLICES
  if window['n' .. at] ~= tostring(slice) then
    window['n' .. at], window['c' .. at], window['f' .. at], window['s' .. at] = slice, 0, 0, 0
  end
  for field, more in pairs({c = calls, f = failed, s = slow}) do
    window[field .. at] = (whole(window[field .. at]) or 0) + more
  end
  window['q' .. WORKER] = string.format('%.0f %.0f', batch, slice)
  if failed > 0 or slow > 0 then
    window['t' .. WORKER] = tostring(slice)
    redis.call('HSET', WINDOW, 't' .. WORKER, slice)
  end
  redis.call('HSET', WINDOW, 'n' .. at, slice, 'c' .. at, window['c' .. at],
    'f' .. at, window['f' .. at], 's' .. at, window['s' .. at], 'q' .. WORKER, window['q' .. WORKER])
  redis.call('PEXPIRE', WINDOW, string.format('%.0f', 2 * policy.window_ms))
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

local function judge(state, sums)
  if tripped ~= '' and policy.quorum <= 1 then return open(state, tripped) end
  if sums.witnesses < policy.quorum or sums.c < policy.min_calls then return end
  if sums.f / sums.c >= policy.failure_rate then
    open(state, string.format('after %.0f of %.0f calls failed in %.0f workers', sums.f, sums.c,
      sums.witnesses))
  elseif sums.s / sums.c >= policy.slow_rate then
    open(state, string.format('after %.0f of %.0f calls were slow', sums.s, sums.c))
  end
end

local function judge_probes(state)
  leases()
  for at = 13, #ARGV, 2 do
    local held = redis.call('HDEL', WINDOW, 'p' .. ARGV[at])
    if held == 1 and state.st == 'H' then
      if ARGV[at + 1] ~= 'ok' then
        open(state, 'after a probe ' .. ARGV[at + 1])
      else
        state.proven = state.proven + 1
        save(state)
        if state.proven >= policy.probes then enter(state, 'C', 0, 'after its probes succeeded') end
      end
    end
  end
end

-- Where the half-open state was lost with its leases, what the probes showed still holds.
local function believe_probes(state)
  for at = 13, #ARGV, 2 do
    if ARGV[at + 1] ~= 'ok' then return open(state, 'after a probe ' .. ARGV[at + 1]) end
  end
  enter(state, 'C', 0, 'after its probes succeeded')
end

local state, found = current()
local is_newest = found ~= 'held' or KNOWN == state.ver
-- Who knows of no version is new here, and what it has seen is recent.
local is_current = is_newest or KNOWN == 0
-- What a worker decided while Redis was away holds, unless the others have decided since.
if left > 0 and is_newest and state.st ~= 'O' then
  state.opens = breaks
  enter(state, 'O', now + left, tripped)
elseif found ~= 'held' and #ARGV > 12 and state.st ~= 'O' then
  believe_probes(state)
elseif state.st == 'H' then
  judge_probes(state)
elseif state.st == 'C' and is_current and (calls > 0 or tripped ~= '') then
  local window = fields_of(WINDOW)
  if not window then
    redis.call('DEL', WINDOW)
    window, found = {}, 'corrupt'
  end
  if not is_repeated(window) then judge(state, count(window)) end
end
return reply(state, found, 0)
