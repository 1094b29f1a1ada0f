// Open, close and isolate: a question in a dialog, and a request that only this page can send.

const KEY = "resilience-token";
const SHOWN = 8000; // milliseconds
const WAIT = 10000;

// Not everybody knows that an open breaker is one that lets nothing through.
const TEXTS = {
  open: {
    label: "Open…",
    hint: "Refuse calls for a while",
    text: "Calls are refused for as long as its policy says; then it is tried again automatically.",
    submit: "Open it: refuse calls",
  },
  close: {
    label: "Close…",
    hint: "Let calls through again",
    text: "All calls go through again at once. If it still fails, the breaker opens by itself.",
    submit: "Close it: let calls through",
  },
  isolate: {
    label: "Isolate…",
    hint: "Refuse calls for a time that you choose",
    text: "Calls are refused and nothing tries it, until the time is over or somebody closes it.",
    submit: "Isolate it: refuse calls",
  },
};

const titleOf = (what, name) => `${TEXTS[what].label.slice(0, -1)} ${name}`;
const at = (id) => document.getElementById(id);
let token = sessionStorage.getItem(KEY) ?? "";
let asked = null; // what, name, and where the buttons are
let fading = 0;

export function offer(place, row, data) {
  place.hidden = !data.can_act;
  const wanted = !data.can_act ? [] : row.state === "closed" ? ["isolate", "open"] : ["close", "isolate"];
  if (place.dataset.offers === wanted.join()) return;
  place.dataset.offers = wanted.join();
  const hadFocus = place.contains(document.activeElement);
  place.replaceChildren(...wanted.map((what) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = TEXTS[what].label;
    button.title = TEXTS[what].hint;
    button.setAttribute("aria-label", titleOf(what, row.name));
    button.addEventListener("click", () => ask(what, row.name, place, data.redis !== null));
    return button;
  }));
  if (hadFocus) place.firstChild?.focus();
}

function ask(what, name, place, isShared) {
  asked = { what, name, place };
  const words = TEXTS[what];
  const scope = isShared ? "This holds in all workers." : "This holds in this process alone, as no Redis is set.";
  at("dialog-title").textContent = titleOf(what, name);
  at("dialog-text").textContent = `${words.text} ${scope}`;
  at("submit").textContent = words.submit;
  at("minutes-part").hidden = what !== "isolate";
  at("token-part").hidden = Boolean(token);
  at("reason").value = "";
  at("token").value = "";
  complain("");
  at("dialog").showModal();
  at(what === "isolate" ? "minutes" : "reason").focus();
}

function complain(text) {
  at("problem").hidden = !text;
  at("problem").textContent = text;
}

function forget() {
  token = "";
  sessionStorage.removeItem(KEY);
  at("token-part").hidden = false;
}

async function submit(event) {
  event.preventDefault();
  const { what, name } = asked;
  const given = token || at("token").value.trim();
  const body = { action: what, name, reason: at("reason").value };
  if (what === "isolate") {
    body.minutes = at("minutes").valueAsNumber;
    if (!(body.minutes > 0)) return fail("For how many minutes?", "minutes");
  }
  if (!given) return fail("The token is missing.", "token");
  if (!/^[!-~]+$/.test(given)) return fail("That is no token: it has a character that none has.", "token");
  at("submit").disabled = true;
  try {
    const answer = await fetch("resilience/actions", {
      method: "POST",
      headers: { "Content-Type": "application/json", Authorization: `Bearer ${given}` },
      body: JSON.stringify(body),
      signal: AbortSignal.timeout(WAIT),
    });
    const told = await answer.json();
    if (answer.ok) done(told.done, given);
    else {
      if (answer.status === 401) forget();
      fail(told.detail, answer.status === 401 ? "token" : "submit");
    }
  } catch {
    fail("No answer came. Look at the page before you try again: it may have been done.", "submit");
  } finally {
    at("submit").disabled = false;
  }
}

function fail(text, where) {
  complain(text);
  at("submit").disabled = false;
  at(where).focus();
}

function done(text, given) {
  if (!token && at("keep").checked) {
    token = given;
    sessionStorage.setItem(KEY, given);
  }
  at("dialog").close();
  at("toast").hidden = false;
  at("toast").textContent = text;
  clearTimeout(fading);
  fading = setTimeout(() => (at("toast").hidden = true), SHOWN);
}

at("form").addEventListener("submit", submit);
at("cancel").addEventListener("click", () => at("dialog").close());
// The button that was pressed may be another by now: who uses the keyboard stays where they were.
at("dialog").addEventListener("close", () => {
  const here = document.activeElement;
  if (!here || here === document.body || at("dialog").contains(here)) asked.place.firstChild?.focus();
});
