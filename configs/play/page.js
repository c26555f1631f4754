"use strict";
// One page of play. The server imagines a chunk per request; frames are shown here at an even pace while the next chunk
// is being imagined. A chunk is asked for as late as it can be, so that the newest keys count.
const $ = (id) => document.getElementById(id);
const state = {
  facts: null, moments: new Map(), now: null, children: new Map(), rows: 0, // what was played
  pushes: new Map(), tapped: new Map(), pad: null, last: null, keyAt: null, // what hands do: control index to {source: -1..1}
  busy: null, waiting: [], cost: { steer: 250, drive: 500 }, // requests
  film: [], dueAt: 0, shown: [], latencies: [], costs: [], keep: 20, model: null, paceAt: 0, ids: 0, futures: [], // what is shown
};
const socket = new WebSocket(`ws://${location.host}/play${location.search}`);
socket.binaryType = "arraybuffer";
socket.onmessage = (event) => { try { receive(event.data); } catch (error) { say(String(error), true); } };
socket.onclose = (event) => say(event.reason || "The server has stopped; start imagine play again.", true);

// ------------------------------------------------------------------------------------------------ talking to the server
function receive(buffer) {
  const size = new DataView(buffer).getUint32(0, true);
  const answer = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, size)));
  const pixels = new Uint8Array(buffer, 4 + size);
  if (answer.hello) return meet(answer, pixels);
  if (answer.judged !== undefined) return judged(answer);
  if (answer.true !== undefined) return simulated(answer, pixels);
  const asked = state.busy && answer.id === state.busy.id ? state.busy : null;
  if (asked) state.busy = null;
  if (answer.error) { stop(); say(answer.error, true); }
  else if (answer.futures) showFutures(answer, pixels);
  else if (answer.saved) say(`Saved ${answer.saved.seconds.toFixed(1)} s as episode ${answer.saved.episode} of ${answer.saved.folder}`);
  else if (answer.moments) moved(answer, pixels, asked);
  if (state.waiting.length) send(state.waiting.shift());
}

function ask(request) { // asked by a click: it has its turn before whatever goes on by itself
  if (state.busy) state.waiting.push(request); else send(request);
}

function send(request) {
  if (socket.readyState !== WebSocket.OPEN) return;
  state.busy = { ...request, id: ++state.ids, sentAt: performance.now() };
  if (request.do === "steer") { state.busy.keyAt = state.keyAt; state.keyAt = null; state.tapped.clear(); }
  socket.send(JSON.stringify({ ...request, id: state.ids }));
}

function say(text, bad = false) { $("status").textContent = text; $("status").classList.toggle("bad", bad); }

// --------------------------------------------------------------------------------------------------------------- moments
function meet(facts, pixels) {
  state.facts = facts;
  const { model, robot, judge, policy } = facts.hello;
  $("about").textContent = `${model} · robot ${robot} · judge ${judge} · policy ${policy}`;
  $("true-figure").hidden = $("agreement-box").hidden = !facts.simulator;
  $("limit").textContent = facts.limit === null ? "" : `(limit ${facts.limit.toFixed(2)})`;
  $("hallucination-bar").querySelector("u").hidden = facts.limit === null;
  $("save").hidden = !facts.saves;
  for (const id of ["dream", "true"]) { $(id).width = facts.width; $(id).height = facts.height; label($(id)); }
  makeHands(facts.controls);
  moved(facts, pixels, null);
  $("stage").focus({ preventScroll: true });
  requestAnimationFrame(tick);
}

function label(canvas) { // the names of the views, where they lie on the canvas
  for (const view of state.facts.views) {
    const tag = document.createElement("i");
    tag.textContent = view.name;
    tag.style.left = `${(100 * view.left) / state.facts.width}%`;
    tag.style.top = `${(100 * view.top) / state.facts.height}%`;
    canvas.parentElement.append(tag);
  }
}

function images(pixels, count, from = 0) {
  const { width, height } = state.facts, size = width * height, out = [];
  for (let f = 0; f < count; f++) {
    const image = new ImageData(width, height);
    for (let i = 0, at = 3 * size * (from + f); i < size; i++, at += 3) {
      image.data[4 * i] = pixels[at]; image.data[4 * i + 1] = pixels[at + 1];
      image.data[4 * i + 2] = pixels[at + 2]; image.data[4 * i + 3] = 255;
    }
    out.push(image);
  }
  return out;
}

function moved(answer, pixels, asked) {
  let from = 0;
  const cost = asked ? performance.now() - asked.sentAt : 0;
  if (asked && state.cost[asked.do]) { state.cost[asked.do] = 0.7 * state.cost[asked.do] + 0.3 * cost; state.model = cost; state.costs.push(cost); if (state.costs.length > state.keep) state.costs.shift(); }
  if (!asked || !state.cost[asked.do]) state.film = []; // a jump: what was still to be shown is not
  for (const given of answer.moments) {
    const known = state.moments.get(given.number);
    if (known) { Object.assign(known, { ...given, frames: known.frames }); continue; }
    const moment = { ...given, frames: images(pixels, given.frames, from), true: null, judged: null };
    from += given.frames;
    const siblings = state.children.get(given.parent) || [];
    moment.row = given.parent !== null && !siblings.length ? state.moments.get(given.parent).row : state.rows++;
    state.children.set(given.parent, [...siblings, given.number]);
    state.moments.set(given.number, moment);
    addMoment(moment);
    if (asked) moment.frames.forEach((_, i) => state.film.push({ moment, i, keyAt: i === 0 ? asked.keyAt : null }));
  }
  state.now = state.moments.get(answer.now);
  if (!asked || answer.known) show(state.now, state.now.frames.length - 1);
  if ($("instruction") !== document.activeElement) $("instruction").value = state.now.instruction;
  $("seed").value = state.now.seed;
  clearFutures();
  markLine();
  switches();
}

function judged(said) { const m = state.moments.get(said.judged); m.judged = said; note(m); course(); if (m === state.seen?.moment) read(m); }

function simulated(said, pixels) {
  const moment = state.moments.get(said.true);
  moment.true = { frames: images(pixels, said.frames), success: said.success };
  if (moment === state.seen?.moment) show(moment, state.seen.i);
}

// --------------------------------------------------------------------------------------------------------------- showing
function show(moment, i) {
  state.seen = { moment, i };
  $("dream").getContext("2d").putImageData(moment.frames[i], 0, 0);
  $("dream").dataset.frame = `${moment.number}.${i}`;
  const seconds = state.facts.seconds, part = (i + 1) / moment.frames.length;
  $("clock").textContent = `${(seconds * (moment.depth ? moment.depth - 1 + part : 0)).toFixed(1)} s`;
  if (moment.true) {
    const at = Math.min(i, moment.true.frames.length - 1);
    $("true").getContext("2d").putImageData(moment.true.frames[at], 0, 0);
    agree(moment, i, at);
  }
  read(moment);
}

function decibel(a, b) {
  let sum = 0;
  for (let i = 0; i < a.data.length; i += 4) for (let c = 0; c < 3; c++) sum += (a.data[i + c] - b.data[i + c]) ** 2;
  return sum ? 10 * Math.log10((255 * 255 * 0.75 * a.data.length) / sum) : Infinity;
}

function agree(moment, i, at) {
  const first = start(moment), true_ = moment.true.frames[at];
  const own = decibel(moment.frames[i], true_), still = decibel(first.frames[0], true_);
  $("agreement").innerHTML = own === Infinity ? "equal" : `${own.toFixed(1)} <small>dB PSNR</small>`;
  $("frozen").textContent = moment.depth ? `the start's picture: ${still === Infinity ? "equal" : `${still.toFixed(1)} dB`}` : "the same start";
  $("agreement").classList.toggle("warn", own < still);
  const done = moment.true.success;
  $("true-note").textContent = done === null ? "" : done ? "task done ✓" : "task not done";
}

function start(moment) { return moment.parent === null ? moment : start(state.moments.get(moment.parent)); }

function read(moment) {
  const said = moment.judged, p = said?.probability ?? null, h = said?.hallucination ?? null, limit = state.facts.limit;
  $("probability").innerHTML = moment.depth === 0 ? "–" : said === null ? "…" : p === null ? "cannot tell" : `${(100 * p).toFixed(0)} <small>%${said.success ? " · success" : ""}</small>`;
  $("probability-bar").firstElementChild.style.width = `${100 * (p ?? 0)}%`;
  const lost = said?.believable === false;
  $("hallucination").innerHTML = h === null ? (said || !moment.depth ? "–" : "…") : `${h.toFixed(2)} <small>${lost ? "not believable" : ""}</small>`;
  $("hallucination").classList.toggle("warn", lost);
  $("hallucination-bar").classList.toggle("warn", lost);
  $("hallucination-bar").firstElementChild.style.width = `${Math.min(100, (50 * (h ?? 0)) / (limit ?? 1))}%`;
  $("stage").classList.toggle("lost", lost);
}

function tick(now) {
  requestAnimationFrame(tick);
  gamepad();
  const speed = Number($("speed").value);
  const interval = (1000 * state.facts.seconds) / Math.max(1, state.now.frames.length || 1) / speed;
  const every = state.film.length ? (1000 * state.facts.seconds) / state.film[0].moment.frames.length / speed : interval;
  if (state.film.length && now >= state.dueAt) {
    const { moment, i, keyAt } = state.film.shift();
    show(moment, i);
    state.dueAt = now - state.dueAt < every ? state.dueAt + every : now + every;
    state.shown.push(now);
    if (keyAt) { state.latencies.push(now - keyAt); if (state.latencies.length > state.keep) state.latencies.shift(); }
  }
  pace(now);
  const request = state.busy || state.waiting.length ? null : wanted();
  if (!request) return;
  const left = state.film.length * every + (state.dueAt - now);
  if (!state.film.length || left <= state.cost[request.do] + 40) send(request);
}

function pace(now) {
  if (now < state.paceAt) return;
  state.paceAt = now + 250;
  const recent = state.shown.filter((t) => t > now - 2000), n = recent.length, sorted = [...state.latencies].sort((a, b) => a - b);
  const fps = n > 1 ? (1000 * (n - 1)) / (recent[n - 1] - recent[0]) : 0;
  if (state.shown.length > 9999) state.shown = recent;
  $("latency").innerHTML = sorted.length ? `${sorted[sorted.length >> 1].toFixed(0)} <small>ms, median of ${sorted.length}</small>` : "–";
  const parts = [fps ? `${fps.toFixed(1)} frames/s shown` : "at rest"];
  if (state.model) parts.push(`a chunk takes ${state.model.toFixed(0)} ms`);
  $("pace").textContent = parts.join(" · ");
}

// ---------------------------------------------------------------------------------------------------------------- moving
function push() { // (A,) in [-1, 1], times the step
  const out = new Array(state.facts.actions).fill(0), scale = Number($("scale").value);
  for (const [index, sources] of state.pushes)
    for (const value of Object.values(sources)) out[index] = Math.max(-1, Math.min(1, out[index] + value));
  for (const [index, value] of state.tapped) out[index] ||= value; // pressed and let go since the last chunk was asked for
  return out.map((x) => Math.max(-1, Math.min(1, x * scale)));
}

function wanted() {
  if ($("policy").ariaPressed === "true") return { do: "drive" };
  const now = push(), moves = now.some((x) => x);
  if (moves) state.last = now;
  return moves || $("run").ariaPressed === "true" || state.settle-- > 0 ? { do: "steer", push: now } : null;
}

function hold(index, source, value) {
  const sources = state.pushes.get(index) || {}, before = sources[source] || 0;
  if (before === value) return;
  if (value) state.tapped.set(index, value);
  if (value) sources[source] = value; else delete sources[source];
  state.pushes.set(index, sources);
  if (value && (!before || Math.sign(before) !== Math.sign(value))) { state.keyAt ??= performance.now(); press("policy", false); }
  for (const button of document.querySelectorAll(`[data-axis="${index}"]`))
    button.classList.toggle("held", Object.values(sources).some((x) => x * button.dataset.sign > 0));
}

function flip(index) {
  state.keyAt ??= performance.now();
  state.settle = 1; // the chunk that does it
  ask({ do: "switch", index });
}

function press(id, on) { $(id).ariaPressed = String(on ?? $(id).ariaPressed !== "true"); }
function stop() { press("policy", false); press("run", false); state.settle = 0; state.waiting = []; state.tapped.clear(); state.keyAt = null; }
function release() { for (const index of state.pushes.keys()) for (const s of Object.keys(state.pushes.get(index))) hold(index, s, 0); }
function back() { if (state.now.parent !== null) { stop(); ask({ do: "go", moment: state.now.parent }); } }
