-- Shared by all breaker scripts: it is put before each of them.
--
-- KEYS  1 state (hash): 'st' C, O or H; 'ver' version; 'till' end of the break in ms; 'opens' breaks in
--         a row; 'proven' probe successes; 'why' reason; 'since' start or end of the outage in ms;
--         'last' last failure; 'length' of the break in ms
--       2 window (hash): per slice n its number, c calls, f failed, s slow, e causes as JSON, each
--         with the slice's index; per worker q last batch and slice, t slice of its last failed or
--         slow call, z ms of its last failure; p<token> end of a probe's lease in ms;
--         'r' successes since the last failure; 'l' that failure; 'bc' calls since the dependency
--         began to fail and 'bf' failed ones, both before the run of failures 'br'; 'bs' successes
--         since it, 'bt' ms of the last failure
-- ARGV  1 channel, 2 now in ms (tests) or '' for the server's clock, 3 policy as JSON, 4 worker,
--       5 version that the worker knows (0: none); a script's own arguments begin at 6
-- Reply state, version, ms left of the break, breaks in a row, reason, how the state was found (see
--       load_state), a number of the script's own, ms since the outage began (0: closed or unknown)
--
-- Only the server's clock counts, and only durations go out: no worker's clock has to be right.
-- Times are formatted with %.0f: Lua's own conversion keeps 14 digits only.
local STATE, WINDOW = KEYS[1], KEYS[2]
local CHANNEL, WORKER, KNOWN = ARGV[1], ARGV[4], tonumber(ARGV[5])
local SLICES, KEEP_MS = 10, 600000
local MAX_OPEN_MS = 7 * 86400000
local MAX_WHOLE = 2 ^ 53 -- doubles hold whole numbers exactly below it
local MAX_TEXT = 800 -- bytes
local MAX_OPENS = 1000000
local MEMORY = 200 -- calls of evidence
local MAX_AHEAD_MS = 200 * 365 * 86400000 -- of a version before the clock

local function clock()
  if ARGV[2] ~= '' then return tonumber(ARGV[2]) end
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local policy, now = cjson.decode(ARGV[3]), clock()
local SLICE_MS = policy.window_ms / SLICES

-- A stored whole number, or nil: any client of this Redis may have written the field.
local function whole(text)
  local number = tonumber(text)
  if number and number >= 0 and number < MAX_WHOLE and number == math.floor(number) then
    return number + 0 -- turns "-0" into 0
  end
  return nil
end

-- The beginning of a text: each worker reads it once a second.
local function clip(text) return string.sub(text or '', 1, MAX_TEXT) end

-- The fields of a hash and whether there are none; nil where the key is no hash.
local function fields_of(key)
  local flat = redis.pcall('HGETALL', key)
  if flat.err then return nil end
  local fields = {}
  for at = 1, #flat, 2 do fields[flat[at]] = flat[at + 1] end
  return fields, #flat == 0
end

-- The stored state, and how it was found: 'held'; 'missing'; 'corrupt', which deletes it; 'behind'
-- where the worker knows a later version, so that Redis must have lost newer state.
local function load_state()
  local fields, is_empty = fields_of(STATE)
  if is_empty then return nil, 'missing' end
  if fields then
    local state = {
      letter = fields.st, version = whole(fields.ver), open_until = whole(fields.till),
      opens = whole(fields.opens), probe_successes = whole(fields.proven), reason = clip(fields.why),
      since = whole(fields.since) or 0, last_failure = clip(fields.last),
    }
    local is_known = state.letter == 'C' or state.letter == 'O' or state.letter == 'H'
    -- A version far ahead of the clock would leave no room to grow. The bound grows with time.
    if is_known and state.version and state.version <= now + MAX_AHEAD_MS and state.open_until
      and state.opens and state.probe_successes and state.open_until <= now + MAX_OPEN_MS then
      state.opens = math.min(state.opens, MAX_OPENS)
      -- A clock that steps back must not prolong a break beyond its length.
      local length = whole(fields.length)
      if length and state.open_until > now + length then
        state.open_until = now + length
        redis.call('HSET', STATE, 'till', string.format('%.0f', state.open_until))
      end
      return state, KNOWN > state.version and 'behind' or 'held'
    end
  end
  redis.call('DEL', STATE, WINDOW)
  return nil, 'corrupt'
end

local function remaining(state)
  return math.max(state.open_until - now, 0)
end

local function save(state)
  redis.call('HSET', STATE, 'st', state.letter, 'ver', string.format('%.0f', state.version),
    'till', string.format('%.0f', state.open_until), 'opens', state.opens,
    'proven', state.probe_successes, 'why', state.reason,
    'since', string.format('%.0f', state.since or 0), 'last', state.last_failure or '')
  redis.call('PEXPIRE', STATE, string.format('%.0f', math.max(KEEP_MS, 4 * remaining(state))))
end

local function no_evidence()
  return {calls = 0, failed = 0, run = 0, successes = 0, failed_at = 0}
end

-- How calls ended since they began to fail; see circuit/evidence.py. It outlasts changes of state: a
-- circuit that bad luck opened needs a longer run of failures the next time.
local function evidence_in(window)
  local failed_at = whole(window.bt) or 0
  if now > failed_at + KEEP_MS then return no_evidence() end
  local total = whole(window.bc) or 0
  return {calls = total, failed = math.min(whole(window.bf) or 0, total),
    run = whole(window.br) or 0, successes = whole(window.bs) or 0, failed_at = failed_at}
end

-- End the run of failures, after which so many more calls came.
local function end_run(evidence, more, more_failed)
  evidence.calls = evidence.calls + evidence.run + more
  evidence.failed = evidence.failed + evidence.run + more_failed
  evidence.run = 0
  while evidence.calls > MEMORY do -- recent calls weigh more
    evidence.calls, evidence.failed = math.floor(evidence.calls / 2), math.floor(evidence.failed / 2)
  end
end

local function save_evidence(evidence)
  redis.call('HSET', WINDOW, 'bc', evidence.calls, 'bf', evidence.failed, 'br', evidence.run,
    'bs', evidence.successes, 'bt', string.format('%.0f', evidence.failed_at))
  redis.call('PEXPIRE', WINDOW, string.format('%.0f', math.max(KEEP_MS, 2 * policy.window_ms)))
end

-- Change the state. The version grows even where state was lost or the clock stepped back: workers
-- ignore any version that is not newer than theirs. It is published in the same script, so that
-- messages come in the order of the changes.
local function enter(state, letter, open_until, reason)
  state.version = math.max(state.version + 1, KNOWN + 1, now)
  -- An outage lasts from closed to closed; a failed probe begins no new one.
  if (state.letter == 'C') ~= (letter == 'C') then state.since = now end
  state.letter, state.reason, state.probe_successes = letter, reason, 0
  state.open_until = math.min(open_until, now + MAX_OPEN_MS)
  if letter == 'C' then state.opens, state.last_failure = 0, '' end
  local evidence = evidence_in(fields_of(WINDOW) or {})
  redis.call('DEL', WINDOW) -- outcomes and leases of the previous state count no more
  save(state)
  if evidence.calls + evidence.run > 0 then
    end_run(evidence, 0, 0)
    save_evidence(evidence)
  end
  redis.call('HSET', STATE, 'length', string.format('%.0f', remaining(state)))
  redis.call('PUBLISH', CHANNEL, string.format('%s %.0f %.0f %.0f %s',
    letter, state.version, remaining(state), state.opens, reason))
end

local function open(state, reason)
  state.opens = state.opens + 1
  local growth = policy.growth ^ math.min(state.opens - 1, 256) -- no infinity
  local length = math.min(policy.open_ms * growth, policy.max_ms)
  if state.opens <= 1 then length = policy.first_ms end
  enter(state, 'O', now + math.floor(length), reason)
end

-- Continue the break that a probe interrupted, for `pause` ms: `opens` does not grow.
local function reopen(state, pause, reason)
  enter(state, 'O', now + math.min(pause, policy.max_ms), reason)
end

-- The stored state, or a closed one where it was lost. That one goes on from the version that the
-- worker knows, or all workers would ignore it. Version 0 means: nothing was decided yet.
local function load_or_create()
  local state, found = load_state()
  if found == 'held' then return state, found end
  state = state
    or {letter = 'C', open_until = 0, opens = 0, probe_successes = 0, reason = 'since the start'}
  state.version = KNOWN > 0 and math.max(KNOWN + 1, now) or 0
  save(state)
  return state, found
end

-- Counts of failures by cause, from JSON; drops whatever has another shape.
local function causes_in(text)
  local is_json, decoded = pcall(cjson.decode, text or '{}')
  local causes = {}
  for cause, count in pairs(is_json and type(decoded) == 'table' and decoded or {}) do
    causes[clip(tostring(cause))] = whole(count)
  end
  return causes
end

-- Sums over the SLICES slices that end with `slice`: calls, failed, slow, workers that saw failed or
-- slow calls (witnesses, for the quorum), workers that reported at all.
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
  for field, value in pairs(window) do
    local kind, last_slice = string.sub(field, 1, 1), whole(string.match(value, '(%d+)$')) or 0
    if last_slice > slice - SLICES then
      if kind == 't' then sums.witnesses = sums.witnesses + 1 end
      if kind == 'q' then sums.workers = sums.workers + 1 end
    end
  end
  return sums
end

-- The number of probe leases held, and when the first ends. Unless `read_only`, deletes those that
-- ended, and a window that is no hash, as no script could write to it.
local function count_leases(read_only)
  local count, first, window = 0, nil, fields_of(WINDOW)
  if not window and not read_only then redis.call('DEL', WINDOW) end
  for field, value in pairs(window or {}) do
    if string.sub(field, 1, 1) == 'p' then
      local ends = whole(value)
      if ends and ends > now then
        -- The clock stepped back. Without a cut a dead worker's lease would last as long as the step.
        if ends > now + policy.lease_ms and not read_only then
          ends = now + policy.lease_ms
          redis.call('HSET', WINDOW, field, string.format('%.0f', ends))
        end
        count, first = count + 1, math.min(first or ends, ends)
      elseif not read_only then
        redis.call('HDEL', WINDOW, field)
      end
    end
  end
  return count, first
end

local function reply(state, found, extra)
  local is_outage = state.letter ~= 'C' and (state.since or 0) > 0
  local outage = is_outage and math.max(now - state.since, 0) or 0
  return {state.letter, string.format('%.0f', state.version),
    string.format('%.0f', remaining(state)), string.format('%.0f', state.opens), state.reason, found,
    string.format('%.0f', extra or 0), string.format('%.0f', outage)}
end
