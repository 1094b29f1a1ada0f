// Renders the data. Whatever comes from outside is set as text, never as markup.

import { offer } from "./actions.js";

const WORDS = {
  healthy: "Working",
  failing: "Failing",
  degraded: "Some calls fail",
  paused: "Paused, as it asked",
  probing: "Probing",
  down: "Down",
  isolated: "Isolated by hand",
  unmonitored: "Not monitored",
};
const MEANINGS = {
  transient: "may pass by itself",
  throttled: "too many calls",
  fatal: "waiting does not help",
  unknown: "no answer in time",
};
const KINDS = { calls: "call", streams: "stream", waiting: "not sent yet" };

const at = (id) => document.getElementById(id);
const rows = new Map();
let ahead = 0; // milliseconds by which this clock is ahead of the server's
let latest = null;
let shownAt = "";

function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function make(tag, kind = "", text = "") {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  if (text) element.textContent = text;
  return element;
}

// ---------------------------------------------------------------- times and numbers

export function clock(seconds) {
  const moment = new Date(seconds * 1000);
  const time = moment.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
  const isToday = moment.toDateString() === new Date().toDateString();
  return isToday ? time : `${moment.toLocaleDateString([], { day: "numeric", month: "short" })}, ${time}`;
}

function duration(seconds) {
  let whole = Math.max(Math.round(seconds), 0);
  const parts = [];
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]]) {
    const count = Math.floor(whole / size);
    whole -= count * size;
    if (count || parts.length) parts.push(`${count} ${unit}`);
  }
  return parts.slice(0, 2).filter((part) => !part.startsWith("0 ")).join(" ") || "0 s";
}

const number = (value) => Math.round(value).toLocaleString("en").replaceAll(",", "\u202f");
const counted = (count, thing) => `${number(count)} ${thing}${count === 1 ? "" : "s"}`;
const percent = (share) => `${Math.round(share * 100)} %`;
const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

// Elements whose text changes with time, and the function that makes it at each tick.
const ticking = new Map();

export function tick() {
  for (const [element, write] of ticking) {
    if (element.isConnected) put(element, write((Date.now() - ahead) / 1000));
    else ticking.delete(element);
  }
}

const failedProbes = (count) => (count ? `; ${counted(count, "probe")} failed since` : "");

// What came after the first reason. The last error is what helps to fix it.
function since(row) {
  const probes = failedProbes(row.failed_probes);
  return probes && row.last_failure && !row.by_hand ? `${probes}, the last with ${row.last_failure.error}` : probes;
}

function untilNext(row) {
  const due = latest.at + (row.retry_after ?? 0);
  if (row.state === "closed") return () => "";
  if (row.condition === "probing") {
    if (row.probes) return () => "A probe is in flight.";
    return () => "The next probe is due.";
  }
  if (row.retry_after === null) return () => "Until it is closed by hand.";
  const [what, over] = row.condition === "isolated" ? ["Ends", "Ends now."] : ["Next probe", "The next probe is due."];
  return (now) => (due - now > 0.5 ? `${what} in ${duration(due - now)}.` : over);
}

// ---------------------------------------------------------------- the whole page

export function drawAll(data) {
  ahead = Date.now() - data.at * 1000;
  latest = data;
  shownAt = clock(data.at);
  put(at("connection-text"), `Live, ${shownAt}`);
  at("connection").dataset.condition = "healthy";
  drawHeadline(data);
  drawNotices(data);
  drawRows(data);
  drawOverrides(data.overrides);
  drawTokens(data.tokens);
  drawChanges(data.changes);
  drawWorkers(data);
  const { host, pid, version } = data.process;
  put(at("process"), `lightrag-resilience ${version}, shown by process ${pid} on ${host}`);
  tick();
}

export function lost(isLost, trouble = "") {
  at("lost").hidden = !isLost;
  if (!isLost) return;
  const since = shownAt ? `The page shows data of ${shownAt}.` : "No data has arrived yet.";
  put(at("lost"), trouble ? `${trouble}. ${since}` : `No connection to the server. ${since} Trying again…`);
  put(at("connection-text"), shownAt ? `Lost, data of ${shownAt}` : "No connection");
  at("connection").dataset.condition = "down";
}

function drawHeadline({ headline, dependencies }) {
  at("headline").dataset.condition = headline.condition;
  put(at("sentence"), headline.sentence.map((part) => (typeof part === "number" ? clock(part) : part)).join(""));
  const broken = dependencies.filter((row) => row.condition === "down" || row.condition === "probing");
  const failing = dependencies.filter((row) => row.condition === "failing");
  const title = broken.length ? `${broken.length} down: ${broken[0].name}` : failing.length ? `${failing.length} failing: ${failing[0].name}` : headline.condition === "healthy" ? "All well" : "Check";
  if (document.title !== `${title} - Resilience`) document.title = `${title} - Resilience`;
  const list = at("why");
  const several = headline.reasons.length > 1;
  fill(list, headline.reasons.map(({ name, reason }) => {
    const row = dependencies.find((each) => each.name === name);
    const text = `${reason}${row ? since(row) : ""}. `;
    const isNamed = !several || row?.health;
    return { key: name, text: isNamed ? sentence(text) : `${name}: ${text}`, row };
  }), (item) => {
    const line = make("li");
    line.append(make("span"), make("span", "next"));
    return line;
  }, (line, item) => {
    put(line.firstChild, item.text);
    if (item.row) ticking.set(line.lastChild, untilNext(item.row));
  });
}

function drawNotices(data) {
  const notices = [];
  if (data.drain) {
    const { phase, reason, in_flight, seconds_left } = data.drain;
    const by = reason ? ` (${reason})` : "";
    const rest = phase === "closing" ? "closing its clients" : `${number(in_flight)} in flight`;
    const end = seconds_left === null ? "" : `, at most ${duration(seconds_left)} left`;
    notices.push({ key: "drain", kind: "unsure", text: `This process is shutting down${by}: ${rest}${end}. It accepts no new calls.` });
  }
  if (data.redis?.error) {
    notices.push({ key: "redis", kind: "bad", text: `Redis cannot be used: ${data.redis.error}. Calls are not affected: each worker uses its own breakers, and this page shows those of one worker.` });
  }
  if (data.omitted) {
    notices.push({ key: "left", kind: "", text: `${counted(data.omitted, "more dependency").replace("dependencys", "dependencies")} are not shown; those in trouble come first.` });
  }
  fill(at("notices"), notices, () => make("p"), (line, notice) => {
    line.className = `notice ${notice.kind}`;
    put(line, notice.text);
  });
}

// ---------------------------------------------------------------- dependencies

function drawRows(data) {
  const list = at("rows");
  const seen = new Set();
  const order = [];
  for (const row of data.dependencies) {
    let drawn = rows.get(row.name);
    if (!drawn) rows.set(row.name, (drawn = makeRow(row.name)));
    if (!drawn.whole.isConnected) list.append(drawn.whole);
    drawRow(drawn, row, data);
    seen.add(row.name);
    order.push(drawn.whole);
  }
  for (const [name, drawn] of rows) {
    if (!seen.has(name)) {
      drawn.whole.remove();
      rows.delete(name);
    }
  }
  // While the reader uses the list, its order stays: no button moves under the pointer.
  const isInUse = list.contains(document.activeElement) || at("dialog").open;
  if (!isInUse && order.some((each, index) => list.children[index] !== each)) list.append(...order);
  at("no-rows").hidden = order.length > 0;
}

function makeRow(name) {
  const drawn = {
    whole: make("li", "row"),
    word: make("span", "word"),
    for: make("span", "for"),
    acts: make("div", "acts"),
    reason: make("p", "reason"),
    why: make("span"),
    next: make("span", "next"),
    facts: make("dl", "facts"),
  };
  const head = make("div", "head");
  drawn.head = head;
  const mark = make("span", "mark");
  mark.setAttribute("aria-hidden", "true");
  head.append(mark, make("h3", "name", name), drawn.word, drawn.for);
  drawn.reason.append(drawn.why, drawn.next);
  drawn.whole.append(head, drawn.reason, drawn.facts, drawn.acts);
  return drawn;
}

function drawRow(drawn, row, data) {
  drawn.whole.dataset.condition = drawn.head.dataset.condition = row.condition;
  put(drawn.word, WORDS[row.condition] ?? row.condition);
  const isClosed = row.state === "closed";
  drawn.reason.hidden = isClosed && !row.diverged && !row.health && row.condition !== "paused";
  if (row.since === null) {
    ticking.delete(drawn.for);
    put(drawn.for, row.mode === "metrics-only" ? "only measured" : "");
  } else ticking.set(drawn.for, (now) => `for ${duration(now - row.since)}`);
  if (isClosed) {
    ticking.delete(drawn.next);
    put(drawn.next, row.cooldown ? `Calls wait ${duration(row.cooldown)}.` : "");
    const diverged = row.diverged ? `Rejected by ${counted(row.diverged, "worker")} with an open breaker of its own. ` : "";
    const showsHealth = row.condition === "failing" || (row.condition === "degraded" && !row.diverged);
    put(drawn.why, showsHealth ? `${sentence(row.health)}. ${diverged}` : diverged);
  } else {
    put(drawn.why, `${sentence(row.first_reason)}${since(row)}. `);
    ticking.set(drawn.next, untilNext(row));
  }
  drawFacts(drawn.facts, row);
  offer(drawn.acts, row, data);
}

function drawFacts(list, row) {
  fill(list, facts(row), (fact) => {
    const whole = make("div", "fact");
    whole.append(make("dt", "", fact.key), make("dd"));
    return whole;
  }, (whole, fact) => {
    whole.classList.toggle("wide", Boolean(fact.isWide));
    put(whole.children[1], fact.text);
    if (fact.share === undefined) return whole.querySelector(".bar")?.remove();
    let bar = whole.querySelector(".bar");
    if (!bar) {
      bar = make("div");
      bar.append(make("span"));
      whole.append(bar);
    }
    bar.className = `bar ${fact.kind}`;
    bar.firstChild.style.setProperty("--share", fact.share.toFixed(3));
  });
}

function facts(row) {
  const found = [];
  if (row.calls) {
    const share = row.failed / row.calls;
    const slow = row.slow ? `, ${number(row.slow)} slow` : "";
    const failed = `${number(row.failed)} of ${number(row.calls)} failed${share < 0.1 ? "" : ` (${percent(share)})`}`;
    found.push({ key: "Last calls", text: failed + slow, share: share || undefined, kind: "failed" });
  }
  const kinds = Object.entries(row.in_flight);
  if (row.local) {
    const text = kinds.map(([kind, count]) => (kind === "waiting" ? `${number(count)} ${KINDS[kind]}` : counted(count, KINDS[kind] ?? kind)));
    found.push({ key: "In flight", text: text.join(", ") || "none" });
  }
  if (row.budget !== null) {
    const share = row.budget < 1 ? row.budget : undefined;
    found.push({ key: "Retry budget", text: `${percent(row.budget)} left`, share, kind: row.budget < 0.2 ? "budget low" : "budget" });
  }
  if (row.bulkhead?.limit) {
    const queued = row.bulkhead.waiting ? `, ${number(row.bulkhead.waiting)} queued` : "";
    found.push({ key: "Permits in use", text: `${row.bulkhead.in_use} of ${number(row.bulkhead.limit)}${queued}` });
  }
  if (row.rpm) found.push({ key: "Requests a minute", text: `up to ${number(row.rpm)}` });
  if (row.tpm) found.push({ key: "Tokens a minute", text: `up to ${number(row.tpm)}` });
  if (row.workers) found.push({ key: "Workers calling", text: number(row.workers) });
  if (row.last_failure) {
    const { error, kind, at } = row.last_failure;
    found.push({ key: "Last failure", text: `${error}, ${MEANINGS[kind] ?? kind} (${clock(at)})`, isWide: true });
  }
  return found;
}

// ---------------------------------------------------------------- lists

function drawChanges(changes) {
  at("no-changes").hidden = changes.length > 0;
  fill(at("changes"), changes.map((change) => ({ key: `${change.at} ${change.name} ${change.new}`, ...change })), () => {
    const line = make("li");
    const what = make("span", "what");
    const mark = make("span", "mark");
    mark.setAttribute("aria-hidden", "true");
    what.append(mark, make("span"));
    line.append(make("span", "when"), what, make("span", "more"));
    return line;
  }, (line, change) => {
    const byHand = /^(by|through) /.test(change.reason);
    const isClosed = change.new === "closed";
    const opened = change.isolated ? "was isolated by hand" : "was opened by hand";
    const how = isClosed ? (byHand ? "was closed by hand" : "recovered") : byHand ? opened : "went down";
    line.children[1].dataset.condition = isClosed ? "healthy" : byHand ? "isolated" : "down";
    put(line.children[0], clock(change.at));
    put(line.children[1].children[1], `${change.name} ${how}`);
    const lasted = change.lasted === null ? "" : `; it was not closed for ${duration(change.lasted)}`;
    put(line.children[2], `${sentence(change.reason)}${failedProbes(change.failed_probes)}${lasted}.`);
  });
}

function drawOverrides(overrides) {
  at("overrides-part").hidden = !overrides.length;
  fill(at("overrides"), overrides.map((each) => ({ key: each.name, ...each })), () => {
    const line = make("li");
    line.append(make("code"), make("span", "more"));
    return line;
  }, (line, { name, value, reason }) => {
    put(line.children[0], `${name} = ${value}`);
    put(line.children[1], `${sentence(reason)}.`);
  });
}

const WORK = { query: "Queries", document: "Documents", other: "Other calls" };
const WASTE = { failed: "failed attempts", retry: "failed retries", hedge: "slower calls of hedges", cancelled: "cancelled calls" };

function drawTokens(tokens) {
  at("tokens-part").hidden = !tokens.length;
  const works = Object.keys(WORK).filter((work) => tokens.some((each) => each.work === work));
  fill(at("tokens"), works.map((work) => ({ key: work, work })), () => {
    const line = make("li");
    line.append(make("span"), make("span", "more"));
    return line;
  }, (line, { work }) => {
    const of = tokens.filter((each) => each.work === work);
    const answers = of.find((each) => each.use === "answer");
    const wasted = of.filter((each) => each.use in WASTE).map((each) => `${each.count.toLocaleString("en")} by ${WASTE[each.use]}`);
    put(line.children[0], `${WORK[work]}: ${(answers ? answers.count : 0).toLocaleString("en")} for answers`);
    put(line.children[1], wasted.length ? `Wasted: ${wasted.join(", ")}.` : "None wasted.");
  });
}

function drawWorkers({ redis, workers, process }) {
  const hosts = new Set(workers.map((worker) => worker.host));
  let text = `No Redis is set, so each process has breakers of its own. This page shows only process ${process.pid} on ${process.host}.`;
  if (redis) {
    const pace = redis.round_trip === null ? "" : ` Redis answers in ${(redis.round_trip * 1000).toFixed(1)} ms.`;
    text = redis.error
      ? `Redis cannot be used: ${redis.error}.`
      : `Breakers are shared through Redis by ${counted(workers.length, "worker")} on ${counted(hosts.size, "machine")}.${pace} Calls in flight, permits and budgets are those of process ${process.pid} on ${process.host}.`;
  }
  put(at("sharing"), text);
  fill(at("workers"), workers.map((worker) => ({ key: `${worker.host} ${worker.pid}`, ...worker })), () => {
    const line = make("li");
    line.append(make("span"), make("span", "more"));
    return line;
  }, (line, { host, pid, diverged }) => {
    put(line.children[0], `Process ${pid} on ${host}`);
    put(line.children[1], diverged.length ? `Its own breakers are open: ${diverged.join(", ")}` : "");
    line.children[1].hidden = !diverged.length;
  });
}

// Give a list one child for each item, in order, and change only what differs: focus is kept.
function fill(list, items, create, update) {
  const known = new Map([...list.children].map((child) => [child.dataset.key, child]));
  items.forEach((item, index) => {
    let child = known.get(item.key);
    if (child) known.delete(item.key);
    else {
      child = create(item);
      child.dataset.key = item.key;
    }
    update(child, item);
    if (list.children[index] !== child) list.insertBefore(child, list.children[index] ?? null);
  });
  for (const child of known.values()) child.remove();
}
