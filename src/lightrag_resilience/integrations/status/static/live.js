// Where the data comes from: a stream of events, or single answers where none arrives.

import { drawAll, lost, tick } from "./render.js";

const PATIENCE = 5000; // milliseconds without data until we say so
const AFTER_ERROR = 1500; // the same after the connection broke
const SILENCE = 2800; // longer than the stream's heartbeat: something on the way holds it back
const AGAIN = 1000;

let heardAt = performance.now();
let streamedAt = heardAt;
let askedAt = -Infinity;
let brokeAt = Infinity;
let trouble = "";

function arrived(data) {
  heardAt = performance.now();
  brokeAt = Infinity;
  trouble = "";
  lost(false);
  drawAll(data);
}

async function askOnce() {
  askedAt = performance.now();
  try {
    const answer = await fetch("resilience/data", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
    const data = await answer.json();
    if (answer.ok) arrived(data);
    else trouble = String(data.detail ?? "");
  } catch {
    trouble = "";
  }
}

function connect() {
  const stream = new EventSource("resilience/events");
  stream.onmessage = (event) => {
    streamedAt = performance.now();
    arrived(JSON.parse(event.data));
  };
  stream.onerror = () => {
    brokeAt = Math.min(brokeAt, performance.now());
    // Refused for good, and not only broken off, the browser does not try again.
    if (stream.readyState === EventSource.CLOSED) setTimeout(connect, AGAIN);
  };
}

setInterval(() => {
  const now = performance.now();
  if (now - streamedAt > SILENCE && now - askedAt > AGAIN) askOnce();
  if (now - heardAt > PATIENCE || now - brokeAt > AFTER_ERROR) lost(true, trouble);
  tick();
}, 250);

connect();
