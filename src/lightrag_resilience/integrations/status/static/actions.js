// Open, close and isolate: a dialog, and a request that only this page can send.

const KEY = "resilience-token";
const SHOWN = 8000; // milliseconds
const WAIT = 10000;

// Each text says what the state does: some readers do not know that an open breaker rejects calls.
const TEXTS = {
  open: {
    label: "Open…",
    hint: "Reject calls for a while",
    text: "Calls are rejected for as long as its policy says; then a probe follows automatically.",
    submit: "Open it: reject calls",
  },
  close: {
    label: "Close…",
    hint: "Let calls through again",
    text: "All calls go through again at once. If it still fails, the breaker opens again.",
    submit: "Close it: let calls through",
  },
  isolate: {
    label: "Isolate…",
    hint: "Reject calls for a time that you choose",
    text: "Calls are rejected and no probe is sent until the time is over or the breaker is closed here.",
    submit: "Isolate it: reject calls",
  },
};

const titleOf = (what, name) => `${TEXTS[what].label.slice(0, -1)} ${name}`;
const at = (id) => document.getElementById(id);
let token = sessionStorage.getItem(KEY) ?? "";
let pending = null; // what, name, and the element with the buttons
let fading = 0;

export function offer(buttons, row, data) {
  buttons.hidden = !data.can_act;
  const wanted = !data.can_act ? [] : row.state === "closed" ? ["isolate", "open"] : ["close", "isolate"];
  if (buttons.dataset.offers === wanted.join()) return;
  buttons.dataset.offers = wanted.join();
  const hadFocus = buttons.contains(document.activeElement);
  buttons.replaceChildren(...wanted.map((what) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = TEXTS[what].label;
    button.title = TEXTS[what].hint;
    button.setAttribute("aria-label", titleOf(what, row.name));
    button.addEventListener("click", () => openDialog(what, row.name, buttons, data.redis !== null));
    return button;
  }));
  if (hadFocus) buttons.firstChild?.focus();
}

function openDialog(what, name, buttons, isShared) {
  pending = { what, name, buttons };
  const words = TEXTS[what];
  const scope = isShared ? "This applies to all workers." : "This applies to this process only, as no Redis is set.";
  at("dialog-title").textContent = titleOf(what, name);
  at("dialog-text").textContent = `${words.text} ${scope}`;
  at("submit").textContent = words.submit;
  at("minutes-part").hidden = what !== "isolate";
  at("token-part").hidden = Boolean(token);
  at("reason").value = "";
  at("token").value = "";
  showProblem("");
  at("dialog").showModal();
  at(what === "isolate" ? "minutes" : "reason").focus();
}

function showProblem(text) {
  at("problem").hidden = !text;
  at("problem").textContent = text;
}

function forgetToken() {
  token = "";
  sessionStorage.removeItem(KEY);
  at("token-part").hidden = false;
}

async function submit(event) {
  event.preventDefault();
  const { what, name } = pending;
  const given = token || at("token").value.trim();
  const body = { action: what, name, reason: at("reason").value };
  if (what === "isolate") {
    body.minutes = at("minutes").valueAsNumber;
    if (!(body.minutes > 0)) return fail("For how many minutes?", "minutes");
  }
  if (!given) return fail("The token is missing.", "token");
  if (!/^[!-~]+$/.test(given)) return fail("That is not a token: it has a character that no token has.", "token");
  at("submit").disabled = true;
  try {
    const answer = await fetch("resilience/actions", {
      method: "POST",
      headers: { "Content-Type": "application/json", Authorization: `Bearer ${given}` },
      body: JSON.stringify(body),
      signal: AbortSignal.timeout(WAIT),
    });
    const result = await answer.json();
    if (answer.ok) done(result.done, given);
    else {
      if (answer.status === 401) forgetToken();
      fail(result.detail, answer.status === 401 ? "token" : "submit");
    }
  } catch {
    fail("No answer came. Check the page before you try again: the change may have been made.", "submit");
  } finally {
    at("submit").disabled = false;
  }
}

function fail(text, where) {
  showProblem(text);
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
// The pressed button may have been replaced: return keyboard focus to the same row.
at("dialog").addEventListener("close", () => {
  const here = document.activeElement;
  if (!here || here === document.body || at("dialog").contains(here)) pending.buttons.firstChild?.focus();
});
