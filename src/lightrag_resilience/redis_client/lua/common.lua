-- What all breaker scripts share. Keys: state, window. The first arguments are always the same:
-- 1 channel, 2 milliseconds to take for now (tests) or '' for the server's clock, 3 policy as JSON,
-- 4 worker, 5 version the worker knows.
local STATE, WINDOW = KEYS[1], KEYS[2]
local CHANNEL, WORKER, KNOWN = ARGV[1], ARGV[4], tonumber(ARGV[5])
local SLICES, KEEP_MS = 10, 600000
local LONGEST_MS = 7 * 86400000 -- for which a circuit is open
local MOST = 2 ^ 53 -- whole numbers are exact below it
local LONGEST = 800 -- bytes of a text
local MOST_BREAKS = 1000000 -- in a row
local FAR_MS = 200 * 365 * 86400000 -- by which a version may be ahead of the clock

local function clock()
  if ARGV[2] ~= '' then return tonumber(ARGV[2]) end
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local policy, now = cjson.decode(ARGV[3]), clock()
local SLICE_MS = policy.window_ms / SLICES

local function whole(text)
  local number = tonumber(text)
  if number and number >= 0 and number < MOST and number == math.floor(number) then
    return number + 0 -- or "-0" would go on as it is
  end
  return nil
end

-- A text, or its beginning: all workers read it once a second.
local function short(text) return string.sub(text or '', 1, LONGEST) end

local function fields_of(key)
  local flat = redis.pcall('HGETALL', key)
  if flat.err then return nil end
  local fields = {}
  for at = 1, #flat, 2 do fields[flat[at]] = flat[at + 1] end
  return fields, #flat == 0
end

-- The stored state, and how it was found: 'held', 'missing', 'corrupt', which deletes it, or
-- 'behind' where the worker knows of a later version, so that newer state must have been lost.
local function load_state()
  local fields, empty = fields_of(STATE)
  if empty then return nil, 'missing' end
  if fields then
    local state = {
      st = fields.st, ver = whole(fields.ver), till = whole(fields.till),
      opens = whole(fields.opens), proven = whole(fields.proven), why = short(fields.why),
      since = whole(fields.since) or 0, last = short(fields.last),
    }
    local known = state.st == 'C' or state.st == 'O' or state.st == 'H'
    -- A version far beyond any clock leaves no room to grow; this bound itself grows with time.
    if known and state.ver and state.ver <= now + FAR_MS and state.till and state.opens
      and state.proven and state.till <= now + LONGEST_MS then
      state.opens = math.min(state.opens, MOST_BREAKS)
      -- No break lasts longer than when it began, whatever the clock has done meanwhile.
      local length = whole(fields.length)
      if length and state.till > now + length then
        state.till = now + length
        redis.call('HSET', STATE, 'till', string.format('%.0f', state.till))
      end
      return state, KNOWN > state.ver and 'behind' or 'held'
    end
  end
  redis.call('DEL', STATE, WINDOW)
  return nil, 'corrupt'
end

local function remaining(state)
  return math.max(state.till - now, 0)
end

local function save(state)
  redis.call('HSET', STATE, 'st', state.st, 'ver', string.format('%.0f', state.ver),
    'till', string.format('%.0f', state.till), 'opens', state.opens, 'proven', state.proven,
    'why', state.why, 'since', string.format('%.0f', state.since or 0), 'last', state.last or '')
  redis.call('PEXPIRE', STATE, string.format('%.0f', math.max(KEEP_MS, 4 * remaining(state))))
end

-- A new state: versions grow across lost state and clocks that step back, and the window begins anew.
local function enter(state, st, till, why)
  state.ver = math.max(state.ver + 1, KNOWN + 1, now)
  -- When it broke, or was well again: a probe that fails begins no new outage.
  if (state.st == 'C') ~= (st == 'C') then state.since = now end
  state.st, state.till, state.why, state.proven = st, math.min(till, now + LONGEST_MS), why, 0
  if st == 'C' then state.opens, state.last = 0, '' end
  redis.call('DEL', WINDOW)
  save(state)
  redis.call('HSET', STATE, 'length', string.format('%.0f', remaining(state)))
  redis.call('PUBLISH', CHANNEL, string.format('%s %.0f %.0f %.0f %s',
    st, state.ver, remaining(state), state.opens, why))
end

local function open(state, why)
  state.opens = state.opens + 1
  local growth = policy.growth ^ math.min(state.opens - 1, 64)
  local length = math.min(policy.open_ms * growth, policy.max_ms)
  enter(state, 'O', now + math.floor(length), why)
end

-- Refuse for so many milliseconds more, in the break that a probe interrupted.
local function reopen(state, pause, why)
  enter(state, 'O', now + math.min(pause, policy.max_ms), why)
end

-- The state to go on with. Where state was lost, versions go on from what the worker knows, or
-- nobody would ever listen again. Version 0 says that nobody has decided anything yet.
local function current()
  local state, found = load_state()
  if found == 'held' then return state, found end
  state = state or {st = 'C', till = 0, opens = 0, proven = 0, why = 'since the start'}
  state.ver = KNOWN > 0 and math.max(KNOWN + 1, now) or 0
  save(state)
  return state, found
end

-- How many failed by what, of one slice, without what is not ours.
local function causes_in(text)
  local read, causes = pcall(cjson.decode, text or '{}')
  local known = {}
  for cause, count in pairs(read and type(causes) == 'table' and causes or {}) do
    known[short(tostring(cause))] = whole(count)
  end
  return known
end

-- What the window holds of the last slices, and how many workers saw failures or reported at all.
local function sum(window, slice)
  local sums = {c = 0, f = 0, s = 0, witnesses = 0, workers = 0}
  for index = 0, SLICES - 1 do
    local number = whole(window['n' .. index])
    if number and number > slice - SLICES and number <= slice then
      for _, field in ipairs({'c', 'f', 's'}) do
        sums[field] = sums[field] + (whole(window[field .. index]) or 0)
      end
    end
  end
  for field, seen in pairs(window) do
    local kind, last = string.sub(field, 1, 1), whole(string.match(seen, '(%d+)$')) or 0
    if last > slice - SLICES then
      if kind == 't' then sums.witnesses = sums.witnesses + 1 end
      if kind == 'q' then sums.workers = sums.workers + 1 end
    end
  end
  return sums
end

-- Probe places in use, and when the first lapses. A lease that has lapsed is given up, and so is a
-- window that is not ours, to which no script could write. Where the clock has stepped back, a
-- lease begins again, or that of a worker that died would last as long as the step.
local function leases(only_look)
  local count, first, window = 0, nil, fields_of(WINDOW)
  if not window and not only_look then redis.call('DEL', WINDOW) end
  for field, till in pairs(window or {}) do
    if string.sub(field, 1, 1) == 'p' then
      local lapses = whole(till)
      if lapses and lapses > now then
        if lapses > now + policy.lease_ms and not only_look then
          lapses = now + policy.lease_ms
          redis.call('HSET', WINDOW, field, string.format('%.0f', lapses))
        end
        count, first = count + 1, math.min(first or lapses, lapses)
      elseif not only_look then
        redis.call('HDEL', WINDOW, field)
      end
    end
  end
  return count, first
end

local function reply(state, found, extra)
  return {state.st, string.format('%.0f', state.ver), string.format('%.0f', remaining(state)),
    string.format('%.0f', state.opens), state.why, found, string.format('%.0f', extra or 0)}
end
