-- Record the outcomes of one worker since its last report, and decide whether the state changes.
--
-- KEYS, ARGV 1-5 and the reply: see common.lua.
-- ARGV  6 ms left of an open state that the worker holds (0: none), 7 its breaks in a row, 8 batch
--       number, 9 calls, 10 failed, 11 slow, 12 reason if the worker tripped by itself, else '',
--       13 failures by cause as JSON, also those without a verdict, 14 the last failure or '',
--       then for each probe its token and its verdict: 'ok'; 'met <ms> <what>' if it was answered
--       but not served; else why it failed
-- Why   one script: the counts, the decision and the message are one step for all workers.
local left, breaks, batch = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local calls, failed, slow = tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11])
local trip_reason, causes, last_failure = ARGV[12], causes_in(ARGV[13]), ARGV[14]
local FIRST_PROBE = 15
local MAX_CAUSES = 8 -- of a slice; others are counted as 'other'
local SETTLED_MS = 5000 -- after which a worker's last failure no longer hides successes of others

-- A report that timed out may still have arrived; sent again, it must not count twice.
local function is_repeated(window)
  local last_batch = whole(string.match(window['q' .. WORKER] or '', '^(%d+)'))
  return last_batch ~= nil and batch <= last_batch
end

-- Add to the run of successes since the last failure. While calls of another worker fail there is no
-- run: reports are batched, so these successes may be older, and they may go to another host.
local function extend_success_run(window)
  redis.call('HDEL', WINDOW, 'z' .. WORKER)
  for field, failed_at in pairs(window) do
    if string.sub(field, 1, 1) == 'z' and field ~= 'z' .. WORKER then
      if now - (whole(failed_at) or 0) <= SETTLED_MS then return end
      redis.call('HDEL', WINDOW, field)
    end
  end
  redis.call('HSET', WINDOW, 'r', string.format('%.0f', (whole(window.r) or 0) + calls))
end

-- Add the causes of failures to the slice; without any, the report extends the run of successes.
local function record_causes(window, index)
  if next(causes) == nil then return extend_success_run(window) end
  local stored, distinct = causes_in(window['e' .. index]), 0
  for _ in pairs(stored) do distinct = distinct + 1 end
  for cause, count in pairs(causes) do
    if not stored[cause] then
      if distinct < MAX_CAUSES then distinct = distinct + 1 else cause = 'other' end
    end
    stored[cause] = (stored[cause] or 0) + count
  end
  window.l = last_failure
  redis.call('HSET', WINDOW, 'e' .. index, cjson.encode(stored), 'r', 0, 'l', last_failure,
    'z' .. WORKER, string.format('%.0f', now))
end

-- Add the outcomes to the present slice, and return the sums of the window.
local function record(window)
  local slice = math.floor(now / SLICE_MS)
  local index = slice % SLICES
  -- The slices are a ring: this index still holds one that is a whole window old.
  if window['n' .. index] ~= tostring(slice) then
    window['n' .. index], window['c' .. index] = slice, 0
    window['f' .. index], window['s' .. index] = 0, 0
    window['e' .. index] = nil
    redis.call('HDEL', WINDOW, 'e' .. index)
  end
  for field, more in pairs({c = calls, f = failed, s = slow}) do
    window[field .. index] = (whole(window[field .. index]) or 0) + more
  end
  record_causes(window, index)
  window['q' .. WORKER] = string.format('%.0f %.0f', batch, slice)
  if failed > 0 or slow > 0 then
    window['t' .. WORKER] = tostring(slice)
    redis.call('HSET', WINDOW, 't' .. WORKER, slice)
  end
  redis.call('HSET', WINDOW, 'n' .. index, slice, 'c' .. index, window['c' .. index],
    'f' .. index, window['f' .. index], 's' .. index, window['s' .. index],
    'q' .. WORKER, window['q' .. WORKER])
  redis.call('PEXPIRE', WINDOW, string.format('%.0f', math.max(KEEP_MS, 2 * policy.window_ms)))
  redis.call('PEXPIRE', STATE, KEEP_MS)
  -- Forget workers that are gone. Two windows, so that a late repeat is still recognised.
  for field, value in pairs(window) do
    if string.sub(field, 1, 1) == 'q' then
      local last_slice = whole(string.match(value, '(%d+)$')) or 0
      if last_slice <= slice - 2 * SLICES then
        redis.call('HDEL', WINDOW, field, 't' .. string.sub(field, 2))
      end
    end
  end
  return sum(window, slice)
end

-- Failures in a row that show that a dependency is down, as in circuit/evidence.py.
local function run_to_open(evidence)
  local share = math.max((evidence.failed + 0.5) / (evidence.calls + 5), 0.1)
  return math.min(math.ceil(math.log(1e-6) / math.log(share) - 1e-9), 60)
end

-- Whether a run of successes is too long for chance, so that the failures are over, as `are_over` in
-- circuit/outcomes.py.
local function is_over(evidence)
  local before = evidence.calls - evidence.successes
  if evidence.successes < 3 then return false end
  if evidence.failed == 0 or before <= evidence.failed then return true end
  return evidence.successes * math.log(1 - evidence.failed / before) <= math.log(0.001)
end

-- Whether all workers together saw a run of failures that shows the dependency is down. In what order
-- the calls of one report ended is not known: with successes among them it ends the run.
local function shows_down(window)
  local evidence = evidence_in(window)
  if failed > 0 then evidence.failed_at = now end
  if failed < calls then
    if evidence.calls + evidence.run + failed == 0 then return false end
    end_run(evidence, calls, failed)
    evidence.successes = failed == 0 and evidence.successes + calls or 0
    if is_over(evidence) then evidence = no_evidence() end
  else
    evidence.run = evidence.run + failed
    if failed > 0 then evidence.successes = 0 end
  end
  save_evidence(evidence)
  return evidence.run > 0 and evidence.run >= run_to_open(evidence), evidence.run
end

local function trip_if_due(state, sums, window)
  state.last_failure = clip(window.l)
  local the_last = ''
  if state.last_failure ~= '' then the_last = ', the last ' .. state.last_failure end
  local is_down, run
  if policy.evidence then is_down, run = shows_down(window) end
  -- Without a quorum the worker's own trip decides: it may know more, such as failures in a row.
  if trip_reason ~= '' and policy.quorum <= 1 then return open(state, trip_reason) end
  if sums.witnesses < policy.quorum then return end
  if is_down then
    return open(state, string.format('after %.0f failures in a row in %.0f workers', run,
      sums.witnesses) .. the_last)
  end
  if sums.c < policy.min_calls then return end
  if not policy.evidence and policy.failure_rate and sums.f / sums.c >= policy.failure_rate then
    open(state, string.format('after %.0f of %.0f calls failed in %.0f workers', sums.f, sums.c,
      sums.witnesses) .. the_last)
  elseif sums.s / sums.c >= policy.slow_rate then
    open(state, string.format('after %.0f of %.0f calls were slow', sums.s, sums.c))
  end
end

local function apply_verdict(state, verdict)
  local pause, met = string.match(verdict, '^met (%d+) (.*)$')
  if verdict == 'ok' then
    state.probe_successes = state.probe_successes + 1
    save(state)
    if state.probe_successes >= policy.probes then
      enter(state, 'C', 0, 'after its probes succeeded')
    end
  elseif pause then
    state.last_failure = met
    reopen(state, tonumber(pause), 'after a probe met ' .. met)
  else
    state.last_failure = string.match(verdict, '^failed with (.*)$') or state.last_failure
    open(state, 'after a probe ' .. verdict)
  end
end

-- A verdict counts only while its lease is held, and the first that ends the half-open state drops
-- the rest: HDEL finds no lease after `enter`.
local function apply_verdicts(state)
  count_leases()
  for at = FIRST_PROBE, #ARGV, 2 do
    local was_held = redis.call('HDEL', WINDOW, 'p' .. ARGV[at])
    if was_held == 1 and state.letter == 'H' then apply_verdict(state, ARGV[at + 1]) end
  end
end

-- Redis lost the half-open state with its leases; what the probes found out still holds.
local function apply_verdicts_without_leases(state)
  for at = FIRST_PROBE, #ARGV, 2 do
    if ARGV[at + 1] ~= 'ok' then return apply_verdict(state, ARGV[at + 1]) end
  end
  enter(state, 'C', 0, 'after its probes succeeded')
end

local state, found = load_or_create()
local is_newest = found ~= 'held' or KNOWN == state.version
-- A worker that knows no version has just started, so its outcomes are recent.
local is_current = is_newest or KNOWN == 0
-- A worker that opened while Redis was unavailable is right, unless the others decided since.
if left > 0 and is_newest and state.letter ~= 'O' then
  state.opens = breaks
  enter(state, 'O', now + left, trip_reason)
elseif found ~= 'held' and #ARGV >= FIRST_PROBE and state.letter ~= 'O' then
  apply_verdicts_without_leases(state)
elseif state.letter == 'H' then
  apply_verdicts(state)
elseif state.letter == 'C' and is_current and (calls > 0 or trip_reason ~= '' or next(causes)) then
  local window = fields_of(WINDOW)
  if not window then -- the key has another type
    redis.call('DEL', WINDOW)
    window, found = {}, 'corrupt'
  end
  if not is_repeated(window) then trip_if_due(state, record(window), window) end
end
return reply(state, found, 0)
