// The page: a button for every seed, a view for every mode, and a slider for the step.
const data = JSON.parse(document.getElementById("data").textContent);
const by = (id) => document.getElementById(id);
const time = by("time"), play = by("play");
const FRAME_MS = 110; // milliseconds for which a step is shown
let views = [], opened = 0, timer = 0;

// ---- the episode of one mode

class ModeView {
  constructor(whole, seedRecord, parent) {
    const record = this.record = upTo(whole, seedRecord.end);
    const box = make("section", { class: "mode", "aria-label": record.name }, parent);
    const head = make("header", {}, box);
    make("h2", {}, head, record.name);
    make("p", {}, head, record.summary + (record.interval > 1 ? `; every ${record.interval}th step is kept` : ""));
    if (record.predictionFault) make("p", {}, head, record.predictionFault);
    const left = make("div", {}, box), right = make("div", {}, box);
    const panels = make("div", { class: "panels" }, left);
    if (record.panels.length > 1) box.classList.add("wide");
    this.panelViews = record.panels.map((panel) => new PanelView(record, panel, seedRecord, panels));
    this.caption = make("p", { class: "caption" }, left);
    const cursors = [energyOverTime(record, right)];
    this.moving = [];
    if (record.errorByHorizon.length) {
      const three = make("div", { class: "three" }, right);
      this.moving.push(candidateEnergies(record, three), energyAhead(record, three), searchProgress(record, three));
      if (record.frames.some((frame) => frame.tree)) this.moving.push(searchTree(record, right));
      const errorCharts = make("div", { class: "pair uneven" }, right);
      cursors.push(errorOverTime(record, errorCharts));
      errorByStepsAhead(record, errorCharts);
    } else {
      make("p", {}, right, "Mode-1 imagines nothing: there are no candidates and no prediction error.");
    }
    this.cursors = cursors;
    const overview = make("details", {}, box);
    make("summary", {}, overview, "overview");
    make("img", { src: record.sheet, loading: "lazy", alt: `key frames and energy, ${record.name}` },
      overview);
  }

  draw(step) {
    const { record } = this;
    let n = 0;
    while (n + 1 < record.steps.length && record.steps[n + 1] <= step) n += 1;
    for (const panelView of this.panelViews) panelView.draw(n);
    for (const move of this.moving) move(n);
    for (const move of this.cursors) move(record.steps[n]);
    this.caption.textContent = describe(record, n);
  }
}

// A record up to a step.
function upTo(record, end) {
  const count = Math.max(1, record.steps.filter((step) => step < end).length);
  return { ...record, end: Math.min(end, record.length), steps: record.steps.slice(0, count),
    frames: record.frames.slice(0, count) };
}

// ---- steps

function seek(step) {
  time.value = step;
  const at = +time.value;
  for (const view of views) view.draw(at);
  by("now").textContent = `after ${count(at, "step")}`;
  time.setAttribute("aria-valuetext", by("now").textContent);
}

function stop() {
  clearInterval(timer);
  timer = 0;
  play.textContent = "Play";
  play.setAttribute("aria-label", "play");
}

function start() {
  if (+time.value === +time.max) seek(0);
  timer = setInterval(() => {
    if (+time.value < +time.max) seek(+time.value + +time.step); else stop();
  }, FRAME_MS);
  play.textContent = "Pause";
  play.setAttribute("aria-label", "pause");
}

const toggle = () => timer ? stop() : start();

// ---- seeds

function open(number) {
  stop();
  opened = number;
  const seedRecord = data.seeds[number], { modes } = seedRecord;
  [...by("seeds").children].forEach((button, n) =>
    button.setAttribute("aria-pressed", n === number));
  const ring = seedRecord.error ? " The ring in the corner of the picture has this radius." : "";
  by("description").textContent = seedRecord.description + ring;
  by("modes").replaceChildren();
  by("modes").className = modes.length > 1 ? "" : "alone";
  by("rest").hidden = modes.every((record) => record.endStep === record.length);
  seedRecord.end = Math.max(...modes.map((record) => by("whole").checked ? record.length : record.endStep));
  views = modes.map((record) => new ModeView(record, seedRecord, by("modes")));
  time.step = Math.min(...modes.map((record) => record.interval));
  time.max = Math.max(...views.map(({ record }) => record.steps[record.steps.length - 1]));
  seek(0);
}

data.seeds.forEach((seedRecord, number) => {
  const button = make("button", { type: "button" }, by("seeds"), seedRecord.name);
  button.addEventListener("click", () => open(number));
});
const used = new Set(data.seeds.flatMap((seedRecord) =>
  [...seedRecord.modes.flatMap((record) => record.layers), ...seedRecord.overlays.map(() => "criticMap")]));
for (const [id, name] of Object.entries(LAYERS).filter(([layer]) => used.has(layer))) {
  const style = `--ink: var(--${id}-ink, var(--${id})); --dash: ${DOTTED.has(id) ? "dotted" : "solid"}`;
  const label = make("label", { style }, by("layers"));
  const box = make("input", { type: "checkbox", id: `layer-${id}` }, label);
  label.append(name);
  box.checked = on[id] = true;
  box.addEventListener("change", () => { on[id] = box.checked; seek(time.value); });
}
by("whole").addEventListener("change", () => {
  const at = time.value;
  open(opened);
  seek(at);
});
time.addEventListener("input", () => { stop(); seek(time.value); });
play.addEventListener("click", toggle);
// The bar and the lines of the candidate under the pointer stand out.
document.addEventListener("pointerover", (event) => {
  const { candidate } = event.target.dataset, view = event.target.closest(".mode");
  for (const element of document.querySelectorAll(".pointed")) element.classList.remove("pointed");
  if (candidate === undefined || !view) return;
  for (const element of view.querySelectorAll(`[data-candidate="${candidate}"]`)) {
    element.classList.add("pointed");
  }
});
document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.target === time) return;
  const moves = { ArrowLeft: -time.step, ArrowRight: +time.step, Home: -1e9, End: 1e9 };
  if (event.key in moves) { stop(); seek(+time.value + moves[event.key]); event.preventDefault(); }
  if (event.key === " " && !event.target.closest("button, input, summary")) {
    toggle();
    event.preventDefault();
  }
});
open(0);
