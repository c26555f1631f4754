// ------------------------------------------------------------------------------------------------ controls of any robot
const plain = (text) => String(text).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);

function element(tag, parent, classes = "", html = "") {
  const made = document.createElement(tag);
  made.className = classes;
  made.innerHTML = html;
  parent.append(made);
  return made;
}

function axisButton(parent, control, sign, text) {
  const key = control.keys[sign > 0 ? 0 : 1], name = `${sign > 0 ? "+" : "−"}${control.name}`;
  const button = element("button", parent, "", `${key ? key.toUpperCase() : text ?? (sign > 0 ? "+" : "−")}<small>${plain(name)}</small>`);
  Object.assign(button.dataset, { axis: control.index, sign });
  button.ariaLabel = `${control.group} ${name}, ${control.reach.toPrecision(2)} ${control.unit} per chunk`;
  button.onpointerdown = (e) => { button.setPointerCapture(e.pointerId); hold(control.index, `b${sign}`, sign); };
  button.onpointerup = button.onpointercancel = () => hold(control.index, `b${sign}`, 0);
  button.onkeydown = (e) => { if ([" ", "Enter"].includes(e.key)) { hold(control.index, `b${sign}`, sign); e.preventDefault(); } };
  button.onkeyup = button.onblur = () => hold(control.index, `b${sign}`, 0);
  return button;
}

function makeHands(controls) {
  state.keys = new Map();
  const groups = Map.groupBy ? Map.groupBy(controls, (c) => c.group) : grouped(controls);
  for (const [name, own] of groups) {
    const hand = element("div", $("hands"), "hand"), axes = own.filter((c) => !c.is_switch);
    const span = axes.length ? `${axes[0].reach.toPrecision(2)} ${plain(axes[0].unit)} per ${state.facts.seconds.toFixed(1)} s` : "";
    element("h3", hand, "", `${plain(name[0].toUpperCase() + name.slice(1))}<span>${span}</span>`);
    const [x, y, z] = ["x", "y", "z"].map((n) => axes.find((c) => c.name === n));
    const pad = x && y ? element("div", hand, "pad") : null;
    if (pad) {
      place(axisButton(pad, x, 1), 1, 2); place(axisButton(pad, y, 1), 2, 1);
      place(axisButton(pad, y, -1), 2, 3); place(axisButton(pad, x, -1), 3, 2);
      if (z) { place(axisButton(pad, z, 1), 1, 5); place(axisButton(pad, z, -1), 3, 5); }
    }
    for (const control of axes.filter((c) => !pad || ![x, y, z].includes(c))) {
      const row = element("div", hand, "axis", `<span>${plain(control.name)} <small>${control.unit === "1" ? "" : plain(control.unit)}</small></span>`);
      axisButton(row, control, -1); axisButton(row, control, 1);
    }
    for (const control of own.filter((c) => c.is_switch)) {
      const button = element("button", pad || element("div", hand, "axis"), "grip", `<output></output><small>${plain(control.name)}</small>${control.keys[0] ? `<kbd>${control.keys[0].toUpperCase()}</kbd>` : ""}`);
      button.dataset.switch = control.index;
      button.ariaLabel = `${name} ${control.name}`;
      button.onclick = () => flip(control.index);
    }
    for (const control of own) {
      if (control.is_switch && control.keys[0]) state.keys.set(control.keys[0], () => flip(control.index));
      else control.keys.forEach((key, i) => state.keys.set(key, { control, sign: i ? -1 : 1 }));
    }
  }
}

function grouped(controls) {
  const out = new Map();
  for (const c of controls) out.set(c.group, [...(out.get(c.group) || []), c]);
  return out;
}

function place(button, row, column) { button.style.gridRow = row; button.style.gridColumn = column; }

function switches() { // how far grippers are open, as they are commanded next
  for (const button of document.querySelectorAll("[data-switch]")) {
    const control = state.facts.controls.find((c) => c.index === Number(button.dataset.switch));
    const value = state.now.target[control.index], share = (value - control.low) / (control.high - control.low);
    button.querySelector("output").textContent = control.name.startsWith("gripper") && share > 0.9 ? "open" : share < 0.1 ? "closed" : value.toPrecision(2);
  }
}

const typing = (e) => e.target.matches("input:not([type=range]), select, textarea");
document.addEventListener("keydown", (e) => {
  if (!state.facts || typing(e) || e.ctrlKey || e.metaKey || e.altKey) return;
  const key = e.key.toLowerCase(), bound = state.keys.get(key);
  if (e.repeat && key !== "backspace") { if (bound || key === " ") e.preventDefault(); return; }
  if (bound?.control) hold(bound.control.index, `k${key}`, bound.sign);
  else if (bound) bound();
  else if (key === "p") press("policy");
  else if (key === " " && !e.target.matches("button")) press("run");
  else if (key === "backspace" || key === "[") back();
  else if (key === "]") { const next = state.children.get(state.now.number); if (next) ask({ do: "go", moment: next.at(-1) }); }
  else return;
  e.preventDefault();
});
document.addEventListener("keyup", (e) => {
  const bound = state.keys?.get(e.key.toLowerCase());
  if (bound?.control) hold(bound.control.index, `k${e.key.toLowerCase()}`, 0);
});
window.addEventListener("blur", () => state.facts && release());

function gamepad() {
  const pad = [...(navigator.getGamepads?.() || [])].find(Boolean);
  if (!pad) { if (state.pad) { release(); state.pad = null; } return; }
  if (!state.pad) $("gamepad").textContent = `Gamepad: ${pad.id.slice(0, 40)}`;
  const before = state.pad || [], pressed = pad.buttons.map((b) => b.pressed), axes = [0, 1, 2, 3].map((i) => dead(pad.axes[i] || 0));
  const hands = [...grouped(state.facts.controls).values()].map((own) => ({
    axes: own.filter((c) => !c.is_switch), grip: own.find((c) => c.is_switch),
  }));
  hands.slice(0, 2).forEach(({ axes: own, grip }, i) => {
    const values = [-axes[2 * i + 1], -axes[2 * i], (pressed[4 + i] ? 1 : 0) - (pressed[6 + i] ? 1 : 0)];
    if (hands.length === 1) values[2] += -axes[3];
    own.slice(0, 3).forEach((c, k) => hold(c.index, "pad", Math.max(-1, Math.min(1, values[k]))));
    if (grip && pressed[i] && !before[i]) flip(grip.index);
  });
  if (pressed[2] && !before[2]) press("policy");
  if (pressed[3] && !before[3]) back();
  state.pad = pressed;
}
const dead = (x) => (Math.abs(x) < 0.15 ? 0 : x);

// ------------------------------------------------------------------------------------------------- filmstrip and futures
function picture(parent, image) {
  const canvas = element("canvas", parent);
  canvas.width = image.width; canvas.height = image.height;
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

function addMoment(moment) {
  const strip = $("strip"), parent = state.moments.get(moment.parent);
  if (parent && parent.row !== moment.row) {
    const elbow = element("div", strip, "elbow");
    elbow.style.gridArea = `${parent.row + 1} / ${moment.depth + 1} / ${moment.row + 2} / ${moment.depth + 2}`;
  }
  const button = moment.button = element("button", strip, `moment ${moment.by}`);
  place(button, moment.row + 1, moment.depth + 1);
  picture(button, moment.frames.at(-1));
  moment.note = element("small", button);
  button.onclick = () => { stop(); ask({ do: "go", moment: moment.number }); $("stage").focus({ preventScroll: true }); };
  note(moment);
}

function note(moment) {
  const p = moment.judged?.probability, lost = moment.judged?.believable === false, by = { start: `seed ${moment.seed}`, hands: "hands", policy: "policy" }[moment.by];
  const end = !lost ? (moment.judged?.success ? "✓" : p == null ? "" : `${(100 * p).toFixed(0)} %`) : "!";
  moment.note.innerHTML = `<b>${by}</b><em>${moment.depth ? end : ""}</em>`;
  moment.button.classList.toggle("lost", lost);
  moment.button.ariaLabel = `${(moment.depth * state.facts.seconds).toFixed(1)} s, ${by}, ${!lost ? `probability of success ${p == null ? "unknown" : p.toFixed(2)}` : "not believable"}`;
  moment.button.title = moment.button.ariaLabel;
}

function markLine() {
  document.querySelectorAll(".moment.line, .moment[aria-current]").forEach((b) => { b.classList.remove("line"); b.ariaCurrent = null; });
  for (let m = state.now; m; m = state.moments.get(m.parent)) m.button.classList.add("line");
  state.now.button.ariaCurrent = "true";
  const strip = $("strip"), b = state.now.button;
  strip.scrollTo({ left: b.offsetLeft - strip.offsetLeft - strip.clientWidth + 2.5 * b.offsetWidth, top: b.offsetTop - strip.offsetTop - strip.clientHeight / 2 });
  course();
  $("back").disabled = $("save").disabled = state.now.parent === null;
}

function course() { // of this line: what the judge said, and hallucination as a share of its limit, from 0 to 1 and above
  const line = [];
  for (let m = state.now; m; m = state.moments.get(m.parent)) if (m.judged && m.depth) line.unshift(m);
  const last = Math.max(8, state.now.depth), x = (m) => (100 * m.depth) / last, limit = state.facts.limit;
  const path = (of, kind) => {
    const points = line.filter((m) => of(m) !== null).map((m) => `${x(m)},${100 - 100 * Math.min(1.2, of(m))}`);
    return `<polyline class="${kind}" points="${points.join(" ")}"/>`;
  };
  const error = limit === null ? "" : path((m) => (m.judged.hallucination === null ? null : m.judged.hallucination / limit), "error");
  $("course").innerHTML = `<line x1="0" x2="100" y1="0" y2="0"/><line x1="0" x2="100" y1="50" y2="50"/>${error}${path((m) => m.judged.probability, "")}`;
}

function imagine(request) {
  stop(); clearFutures();
  const [n, depth] = [Number($("number").value), Number($("depth").value)];
  say(`Imagining ${n} futures …`);
  $("cards").ariaBusy = "true";
  ask({ do: "imagine", n, depth, ...request });
}

function showFutures(answer, pixels) {
  let from = 0;
  say(""); $("cards").ariaBusy = "false";
  $("futures-note").textContent = answer.by === "policy" ? "Candidates of the policy under one noise of the dream; click one to play it." : "One push under several noises of the dream: how sure it is. Click one to play it.";
  state.futures = answer.futures.map((given, which) => {
    const frames = images(pixels, given.frames, from);
    from += given.frames;
    const best = answer.by === "policy" && which === answer.best;
    const card = element("button", $("cards"), `card${best ? " best" : ""}${given.believable ? "" : " lost"}`);
    const canvas = picture(card, frames.at(-1)), p = given.probability;
    const h = given.hallucination === null ? "" : given.hallucination.toFixed(2);
    element("span", card, "", `<b>${p === null ? "cannot tell" : `success ${(100 * p).toFixed(0)} %`}</b>${given.progress === null ? "" : `<em>progress ${(100 * given.progress).toFixed(0)} %</em>`}<em>hallucination ${h}</em>${best ? "<i>best</i>" : ""}`);
    card.onclick = () => { ask({ do: "take", which }); $("stage").focus({ preventScroll: true }); };
    return { canvas, frames };
  });
}

function clearFutures() { state.futures = []; $("cards").replaceChildren(); }
setInterval(() => { // futures play in a loop, and rest on their last frame
  const at = Math.floor(performance.now() / 150);
  for (const { canvas, frames } of state.futures)
    canvas.getContext("2d").putImageData(frames[Math.min(at % (frames.length + 5), frames.length - 1)], 0, 0);
}, 75);

$("policy").onclick = () => press("policy");
$("run").onclick = () => press("run");
$("back").onclick = back;
$("save").onclick = () => { stop(); ask({ do: "save" }); };
$("candidates").onclick = () => imagine({});
$("mine").onclick = () => imagine({ push: state.last || new Array(state.facts.actions).fill(0) });
$("scale").oninput = () => { $("scale-out").textContent = `${$("scale").value} ×`; };
$("task").onsubmit = (e) => { e.preventDefault(); ask({ do: "instruct", text: $("instruction").value }); $("stage").focus(); };
$("begin").onsubmit = (e) => { e.preventDefault(); stop(); ask({ do: "start", seed: Number($("seed").value) }); $("stage").focus(); };
$("next").onclick = () => { stop(); ask({ do: "start", seed: state.now.seed + 1 }); };
