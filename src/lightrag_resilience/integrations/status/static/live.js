// Fetches the data: from a stream of events, or by polling when the stream is silent.

import { drawAll, lost, tick } from "./render.js";

const PATIENCE = 5000; // milliseconds without data until the page says so
const AFTER_ERROR = 1500; // the same after the connection broke
const SILENCE = 2800; // longer than the stream's heartbeat: a proxy buffers the stream
const RETRY_AFTER = 1000;

let receivedAt = performance.now();
let streamedAt = receivedAt;
let polledAt = -Infinity;
let brokeAt = Infinity;
let trouble = "";

function receive(data) {
  receivedAt = performance.now();
  brokeAt = Infinity;
  trouble = "";
  lost(false);
  drawAll(data);
}

async function poll() {
  polledAt = performance.now();
  try {
    const answer = await fetch("resilience/data", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
    const data = await answer.json();
    if (answer.ok) receive(data);
    else trouble = String(data.detail ?? "");
  } catch {
    trouble = "";
  }
}

function connect() {
  const stream = new EventSource("resilience/events");
  stream.onmessage = (event) => {
    streamedAt = performance.now();
    receive(JSON.parse(event.data));
  };
  stream.onerror = () => {
    brokeAt = Math.min(brokeAt, performance.now());
    // After an HTTP error, other than a broken connection, the browser does not reconnect.
    if (stream.readyState === EventSource.CLOSED) setTimeout(connect, RETRY_AFTER);
  };
}

setInterval(() => {
  const now = performance.now();
  if (now - streamedAt > SILENCE && now - polledAt > RETRY_AFTER) poll();
  if (now - receivedAt > PATIENCE || now - brokeAt > AFTER_ERROR) lost(true, trouble);
  tick();
}, 250);

connect();
