// The page: chapters, one for every seed; acts, one for every mode; and time.
const story = JSON.parse(document.getElementById("story").textContent);
const by = (id) => document.getElementById(id);
const time = by("time"), play = by("play");
const LAYERS = { // in the order of their keys; drawn in that of ORDER
  lived: "lived", chosen: "chosen", considered: "considered", came: "came true", hopes: "subgoals",
};
const ORDER = ["lived", "considered", "came", "chosen", "hopes"]; // the last lies above
const DOTTED = new Set(["came", "hopes"]);
const RECENT = 20; // lived steps that are drawn strong
const PACE = 110; // milliseconds a moment is shown
const on = {};
let shown = [], timer = 0;

// ---- one panel: a picture, and states drawn over it

class Stage {
  constructor(act, panel, parent) {
    this.act = act;
    this.panel = panel;
    const figure = make("figure", {}, parent), box = make("div", { class: "stage" }, figure);
    this.images = panel.images.map((source) => {
      const image = new Image();
      image.src = source;
      return image;
    });
    this.canvas = make("canvas", { role: "img", "aria-label": `${panel.name}, ${act.name}` }, box);
    this.canvas.width = panel.width;
    this.canvas.height = panel.height;
    this.svg = make("svg", { viewBox: `-0.5 -0.5 ${panel.width} ${panel.height}`,
      "aria-hidden": "true" }, box);
    make("figcaption", {}, figure, panel.name);
  }

  draw(n) {
    const image = this.images[this.panel.shown[n]], pen = this.canvas.getContext("2d");
    const paint = () => {
      if (this.image === image) pen.drawImage(image, 0, 0, this.canvas.width, this.canvas.height);
    };
    this.image = image;
    if (image.complete) paint(); else image.onload = paint;
    this.svg.replaceChildren();
    if (this.panel.overlaid) this.overlay(this.act.moments[n], this.act.steps[n]);
  }

  overlay(moment, step) {
    const path = this.act.path, horizon = moment.chosen.length / 2 - 1;
    const past = path.slice(0, 2 * step + 2), late = Math.max(0, 2 * (step - RECENT));
    const strokes = {
      lived: [[line(past), 2.6, 0.4], [line(past.slice(late)), 2.6, 1]],
      came: [[line(path.slice(2 * step, 2 * (step + horizon) + 2)), 2.4, 0.95]],
      considered: [[moment.considered.map(line).join(""), 1.6, this.faint(moment)]],
      chosen: [[line(moment.chosen), 2.4, 1]],
      hopes: [[moment.hopes.map((hopes) => line([...past.slice(-2), ...hopes])).join(""), 1.8, 1]],
    };
    for (const id of ORDER.filter((layer) => on[layer])) {
      for (const [d, width, opacity] of strokes[id]) this.stroke(id, d, width, opacity);
    }
    if (on.lived) this.dots("lived", past.slice(-2), () => 5);
    if (on.chosen) this.dots("chosen", moment.chosen.slice(2), (k) => 4.2 - 1.6 * k / horizon);
    if (on.hopes) moment.hopes.forEach((hopes) => this.diamond(hopes));
  }

  faint(moment) {
    return Math.min(0.55, Math.max(0.12, 2 / Math.sqrt(moment.considered.length)));
  }

  stroke(id, d, width, opacity) {
    make("path", { d, fill: "none", stroke: `var(--${id})`, "stroke-width": width, opacity,
      "stroke-linecap": "round", "stroke-linejoin": "round", "vector-effect": "non-scaling-stroke",
      ...(DOTTED.has(id) ? { "stroke-dasharray": "1 5" } : {}) }, this.svg);
  }

  dots(id, points, radius) {
    const unit = Math.max(this.panel.width, this.panel.height) / 400;
    for (let i = 0; i < points.length; i += 2) {
      make("circle", { cx: points[i], cy: points[i + 1], r: radius(i / 2) * unit,
        fill: `var(--${id})`, stroke: "#fff", "stroke-width": unit }, this.svg);
    }
  }

  diamond([x, y]) {
    const r = 8 * Math.max(this.panel.width, this.panel.height) / 400;
    const d = `M${x} ${y - r}L${x + r} ${y}L${x} ${y + r}L${x - r} ${y}Z`;
    make("path", { d, fill: "none", stroke: "var(--hopes)", "stroke-width": 2.2,
      "vector-effect": "non-scaling-stroke" }, this.svg);
  }
}

// ---- one act: how one mode lived

class Act {
  constructor(act, parent) {
    this.act = act;
    const box = make("section", { class: "act", "aria-label": act.name }, parent);
    const head = make("header", {}, box);
    make("h2", {}, head, act.name);
    make("p", {}, head, act.verdict + (act.every > 1 ? `; every ${act.every}th step is kept` : ""));
    const left = make("div", {}, box), right = make("div", {}, box);
    const panels = make("div", { class: "panels" }, left);
    if (act.panels.length > 1) box.classList.add("wide");
    this.stages = act.panels.map((panel) => new Stage(act, panel, panels));
    this.said = make("p", { class: "said" }, left);
    const cursors = [energyOverTime(act, right)];
    this.moving = [];
    if (act.ahead.length) {
      const pair = make("div", { class: "pair" }, right);
      this.moving.push(energyAhead(act, pair), energyFalling(act, pair));
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
    const moment = act.moments[n];
    const parts = [`step ${act.steps[n]} of ${act.length}`];
    if (moment.terms.length) parts.push(`energy ${brief(sum(moment.terms))}`);
    if (act.unit) parts.push(`${act.unit}: ${brief(moment.toGo)}`);
    if (act.mode === "auto") parts.push(moment.thinking.length > 1 ? "thought" : "reacted");
    if (step >= act.length) parts.push("over");
    this.said.textContent = parts.join(" · ");
  }
}

// ---- time

function seek(step) {
  time.value = step;
  const at = +time.value;
  for (const act of shown) act.draw(at);
  by("now").textContent = `step ${at} of ${time.max}`;
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
  const chapter = story.chapters[number], buttons = by("chapters").children;
  [...buttons].forEach((button, n) => button.setAttribute("aria-pressed", n === number));
  by("told").textContent = chapter.told;
  by("acts").replaceChildren();
  by("acts").className = chapter.acts.length > 1 ? "" : "alone";
  shown = chapter.acts.map((act) => new Act(act, by("acts")));
  time.step = Math.min(...chapter.acts.map((act) => act.every));
  time.max = Math.max(...chapter.acts.map((act) => act.steps[act.steps.length - 1]));
  seek(0);
}

story.chapters.forEach((chapter, number) => {
  const button = make("button", { type: "button" }, by("chapters"), chapter.name);
  button.addEventListener("click", () => open(number));
});
const used = new Set(story.chapters.flatMap((chapter) => chapter.acts.flatMap((act) => act.layers)));
for (const [id, name] of Object.entries(LAYERS).filter(([layer]) => used.has(layer))) {
  const style = `--ink: var(--${id}-ink, var(--${id})); --dash: ${DOTTED.has(id) ? "dotted" : "solid"}`;
  const label = make("label", { style }, by("layers"));
  const box = make("input", { type: "checkbox", id: `layer-${id}` }, label);
  label.append(name);
  box.checked = on[id] = true;
  box.addEventListener("change", () => { on[id] = box.checked; seek(time.value); });
}
time.addEventListener("input", () => { stop(); seek(time.value); });
play.addEventListener("click", toggle);
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
