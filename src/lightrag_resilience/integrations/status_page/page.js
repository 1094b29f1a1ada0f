// Where the data comes from: a stream of events, or single answers where there is none.

import { drawAll, lost, tick } from "./draw.js";

const PATIENCE = 5000; // milliseconds without data until we say so
const AFTER_ERROR = 1500; // the same after the connection broke
const AGAIN = 1000;

let heardAt = performance.now();
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
  stream.onmessage = (event) => arrived(JSON.parse(event.data));
  stream.onerror = () => {
    brokeAt = Math.min(brokeAt, performance.now());
    if (stream.readyState === EventSource.CLOSED) {
      // Refused for good, and not only broken off: the browser will not try again.
      askOnce();
      setTimeout(connect, AGAIN);
    }
  };
}

setInterval(() => {
  const now = performance.now();
  if (now - heardAt > PATIENCE || now - brokeAt > AFTER_ERROR) lost(true, trouble);
  tick();
}, 250);

connect();
