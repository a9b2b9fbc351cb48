// The page: chapters, one for every seed; acts, one for every mode; and time.
const story = JSON.parse(document.getElementById("story").textContent);
const by = (id) => document.getElementById(id);
const time = by("time"), play = by("play");
const PACE = 110; // milliseconds a moment is shown
let shown = [], opened = 0, timer = 0;

// ---- one act: how one mode lived

class Act {
  constructor(whole, chapter, parent) {
    const act = this.act = upTo(whole, chapter.end);
    const box = make("section", { class: "act", "aria-label": act.name }, parent);
    const head = make("header", {}, box);
    make("h2", {}, head, act.name);
    make("p", {}, head, act.verdict + (act.every > 1 ? `; every ${act.every}th step is kept` : ""));
    const left = make("div", {}, box), right = make("div", {}, box);
    const panels = make("div", { class: "panels" }, left);
    if (act.panels.length > 1) box.classList.add("wide");
    this.stages = act.panels.map((panel) => new Stage(act, panel, chapter, panels));
    this.said = make("p", { class: "said" }, left);
    const cursors = [energyOverTime(act, right)];
    this.moving = [];
    if (act.ahead.length) {
      const three = make("div", { class: "three" }, right);
      this.moving.push(compared(act, three), energyAhead(act, three), energyFalling(act, three));
      const truth = make("div", { class: "pair uneven" }, right);
      cursors.push(foreseen(act, truth));
      foreseenAhead(act, truth);
    } else {
      make("p", {}, right, "A reflex imagines nothing: there is no future to compare or to check.");
    }
    this.cursors = cursors;
    const glance = make("details", {}, box);
    make("summary", {}, glance, "all at a glance");
    make("img", { src: act.sheet, loading: "lazy", alt: `key frames and energy, ${act.name}` },
      glance);
  }

  draw(step) {
    const { act } = this;
    let n = 0;
    while (n + 1 < act.steps.length && act.steps[n + 1] <= step) n += 1;
    for (const stage of this.stages) stage.draw(n);
    for (const move of this.moving) move(n);
    for (const move of this.cursors) move(act.steps[n]);
    this.said.textContent = told(act, n);
  }
}

// An act up to a step.
function upTo(act, end) {
  const count = Math.max(1, act.steps.filter((step) => step < end).length);
  return { ...act, end: Math.min(end, act.length), steps: act.steps.slice(0, count),
    moments: act.moments.slice(0, count) };
}

// ---- time

function seek(step) {
  time.value = step;
  const at = +time.value;
  for (const act of shown) act.draw(at);
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
  }, PACE);
  play.textContent = "Pause";
  play.setAttribute("aria-label", "pause");
}

const toggle = () => timer ? stop() : start();

// ---- chapters

function open(number) {
  stop();
  opened = number;
  const chapter = story.chapters[number], { acts } = chapter;
  [...by("chapters").children].forEach((button, n) =>
    button.setAttribute("aria-pressed", n === number));
  const off = chapter.error ? " The ring in the corner of the picture shows how much that is." : "";
  by("told").textContent = chapter.told + off;
  by("acts").replaceChildren();
  by("acts").className = acts.length > 1 ? "" : "alone";
  by("rest").hidden = acts.every((act) => act.until === act.length);
  chapter.end = Math.max(...acts.map((act) => by("whole").checked ? act.length : act.until));
  shown = acts.map((act) => new Act(act, chapter, by("acts")));
  time.step = Math.min(...acts.map((act) => act.every));
  time.max = Math.max(...shown.map(({ act }) => act.steps[act.steps.length - 1]));
  seek(0);
}

story.chapters.forEach((chapter, number) => {
  const button = make("button", { type: "button" }, by("chapters"), chapter.name);
  button.addEventListener("click", () => open(number));
});
const used = new Set(story.chapters.flatMap((chapter) =>
  [...chapter.acts.flatMap((act) => act.layers), ...chapter.shades.map(() => "landscape")]));
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
// A future that is pointed at, as a line or as a bar, stands out as both.
document.addEventListener("pointerover", (event) => {
  const { future } = event.target.dataset, act = event.target.closest(".act");
  for (const one of document.querySelectorAll(".pointed")) one.classList.remove("pointed");
  if (future === undefined || !act) return;
  for (const one of act.querySelectorAll(`[data-future="${future}"]`)) one.classList.add("pointed");
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
