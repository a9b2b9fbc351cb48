// Charts of what was thought. Each function draws one of a record into `parent`; what changes with
// time is drawn by what it returns.

// ---- making things

function make(name, attributes, parent, text) {
  const svg = "svg path circle line rect text g title".split(" ").includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name)
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

// Points as one flat list [x, y, x, y, ...] -> what a path draws.
function line(points) {
  let d = "";
  for (let i = 0; i < points.length; i += 2) d += (i ? "L" : "M") + points[i] + " " + points[i + 1];
  return d;
}

function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((n) => n * power >= rough * 0.999);
  const found = [];
  for (let x = Math.ceil(low / step) * step; x <= high + step * 1e-6; x += step) found.push(x);
  return found;
}

// ---- charts

const LEFT = 44, BOTTOM = 22, TOP = 6;
const SMALL = [160, 104];

class Chart {
  // `low`, `high`: of what stands upright; across it goes from `from` to `to`.
  constructor(parent, title, [wide, high], [from, to], [least, most], under) {
    this.box = make("div", { class: "chart" }, parent);
    this.title = make("h3", {}, this.box, title);
    this.svg = make("svg", { viewBox: `0 0 ${wide} ${high}`, role: "img" }, this.box);
    make("title", {}, this.svg, title);
    this.wide = wide;
    this.base = high - BOTTOM;
    const pad = (most - least || 1) * 0.04;
    this.least = least < 0 ? least - pad : least;
    this.most = most > 0 ? most + pad : most;
    if (this.most === this.least) this.most += 1;
    this.x = (v) => LEFT + (wide - LEFT - 6) * (v - from) / (to - from || 1);
    this.y = (v) => this.base - (this.base - TOP) * (v - this.least) / (this.most - this.least);
    this.scale = make("g", {}, this.svg);
    this.inner = make("g", {}, this.svg);
    this.from = from; this.to = to;
    this.under = under;
    this.axes();
  }

  axes() {
    for (const v of ticks(this.least, this.most, 3)) {
      const y = this.y(v);
      make("line", { x1: LEFT, x2: this.wide - 6, y1: y, y2: y, stroke: "var(--line)" }, this.scale);
      make("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, this.scale, brief(v));
    }
    for (const v of ticks(this.from, this.to, 6)) {
      const room = this.under ? 14 + 6 * this.under.length : 0; // there it says of what
      if (!Number.isInteger(v) || this.x(v) > this.wide - room) continue;
      make("text", { x: this.x(v), y: this.base + 15, "text-anchor": "middle" }, this.scale, v);
    }
    make("text", { x: this.wide - 6, y: this.base + 15, "text-anchor": "end",
      class: "under" }, this.scale, this.under);
  }

  curve(xs, ys, attributes) {
    let d = "", pen = "M";
    xs.forEach((x, i) => {
      if (ys[i] === null) { pen = "M"; return; }
      d += pen + this.x(x).toFixed(1) + " " + this.y(ys[i]).toFixed(1);
      pen = "L";
    });
    return make("path", { d, fill: "none", "stroke-width": 1.8, ...attributes }, this.inner);
  }

  area(xs, inner, outer, color) {
    const there = xs.flatMap((x, i) => [this.x(x).toFixed(1), this.y(outer[i]).toFixed(1)]);
    const back = xs.flatMap((x, i) => [this.x(x).toFixed(1), this.y(inner[i]).toFixed(1)]);
    const pairs = [];
    for (let i = back.length; i > 0; i -= 2) pairs.push(back[i - 2], back[i - 1]);
    make("path", { d: line([...there, ...pairs]) + "Z", fill: color, opacity: 0.8 }, this.inner);
  }

  bar(x, inner, outer, color) {
    const [a, b] = [this.y(inner), this.y(outer)], wide = this.x(1.7) - this.x(1);
    return make("rect", { x: this.x(x) - wide / 2, width: wide, y: Math.min(a, b),
      height: Math.abs(a - b), fill: color, opacity: 0.85 }, this.inner);
  }

  upright(x, attributes) {
    return make("line", { x1: this.x(x), x2: this.x(x), y1: TOP, y2: this.base, ...attributes },
      this.inner);
  }

  // A line that stands where time is, and goes where one clicks.
  cursor() {
    const at = this.upright(this.from, { stroke: "var(--text)", "stroke-width": 1.2 });
    this.svg.classList.add("seek");
    this.svg.addEventListener("pointerdown", (event) => {
      const box = this.svg.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width * this.wide;
      const share = (x - LEFT) / (this.wide - LEFT - 6);
      stop();
      seek(Math.round(this.from + share * (this.to - this.from)));
    });
    return (x) => { at.setAttribute("x1", this.x(x)); at.setAttribute("x2", this.x(x)); };
  }
}

// Terms one on the other: what hurts above zero, what is welcome below -> [inner, outer] of each.
function stacked(terms) {
  let above = 0, below = 0;
  return terms.map((term) => {
    const inner = term > 0 ? above : below;
    if (term > 0) above += term; else below += term;
    return [inner, inner + term];
  });
}

function ends(stacks, others) {
  const all = [0, ...stacks.flat(2), ...finite(others)];
  return [Math.min(...all), Math.max(...all)];
}

// Energy and critic over time, on one scale where both are about the goal.
function energyOverTime(record, parent) {
  const hasSubgoals = record.layers.includes("subgoals"), both = !hasSubgoals && record.terms.length > 0;
  const move = [];
  if (record.terms.length) move.push(energyOf(record, parent, hasSubgoals, both && record.unit));
  if (record.unit && !both) move.push(criticOf(record, parent));
  return (step) => move.forEach((each) => each(step));
}

function energyOf(record, parent, hasSubgoals, critic) {
  const steps = record.steps, stacks = record.frames.map((m) => stacked(m.terms));
  const title = `what the chosen future would cost${hasSubgoals ? ", to the subgoal" : ""}: energy by term`;
  const chart = new Chart(parent, title, [560, 170], [0, record.end],
    ends(stacks, critic ? criticValues(record) : []), "step");
  record.terms.forEach((name, n) => {
    const [inner, outer] = [0, 1].map((side) => stacks.map((stack) => stack[n][side]));
    chart.area(steps, inner, outer, record.colors[n]);
  });
  const keys = make("p", {}, chart.box);
  record.terms.forEach((name, n) => key(keys, name, record.colors[n]));
  if (critic) drawCritic(record, chart, keys); else arrival(record, chart, keys);
  return chart.cursor();
}

function criticOf(record, parent) {
  const chart = new Chart(parent, `what the critic expects: ${record.unit}`, [560, 130], [0, record.end],
    ends([], criticValues(record)), "step");
  drawCritic(record, chart, make("p", {}, chart.box));
  return chart.cursor();
}

// Steps to the goal can be counted when it is over.
const hasStepCount = (record) => record.unit === "steps to go" && record.successStep !== null;
const criticValues = (record) =>
  [...record.frames.map((m) => m.criticValue), ...(hasStepCount(record) ? [record.successStep] : [])];

function drawCritic(record, chart, keys) {
  chart.curve(record.steps, record.frames.map((m) => m.criticValue),
    { stroke: "var(--text)", "stroke-dasharray": "5 3" });
  key(keys, `dashed: what the critic expects, ${record.unit}`, "var(--text)");
  if (hasStepCount(record)) {
    chart.curve([0, record.successStep], [record.successStep, 0], { stroke: "var(--success)" });
    key(keys, "steps it really took", "var(--success)");
  }
  arrival(record, chart, keys);
}

function arrival(record, chart, keys) {
  if (record.successStep === null) return;
  chart.upright(record.successStep, { stroke: "var(--success)", "stroke-width": 1.6 });
  key(keys, `upright: ${record.successLabel}`, "var(--success)");
}

function key(parent, name, color) {
  make("span", { class: "key", style: `--ink: ${color}` }, parent, name);
}

// The energy of each future that was in the running, the chosen one first; its line in the picture
// is found by its number.
function candidateEnergies(record, parent) {
  const all = record.frames.map((m) => [["planned", sum(m.terms)], ...m.otherCandidates]);
  const most = Math.max(...all.map((energies) => energies.length));
  const chart = new Chart(parent, "what was compared", SMALL, [0.4, most + 0.6],
    ends([], all.flat().map(([, energy]) => energy)), "");
  return (n) => {
    chart.inner.replaceChildren();
    all[n].forEach(([future, energy], k) => {
      const bar = chart.bar(k + 1, 0, energy, k ? "var(--candidates)" : "var(--planned)");
      bar.dataset.future = future;
      make("title", {}, bar, `energy ${brief(energy)}`);
    });
  };
}

// What each imagined step by itself would cost, at one moment; the same scale at all moments.
function energyAhead(record, parent) {
  const horizon = record.frames[0].stepEnergies.length;
  const all = record.frames.map((m) => m.stepEnergies.map(stacked));
  const chart = new Chart(parent, "the chosen, by step", SMALL, [0.4, horizon + 0.6],
    ends(all.flat(), []), "ahead");
  return (n) => {
    chart.inner.replaceChildren();
    all[n].forEach((stack, k) => stack.forEach(([inner, outer], term) =>
      chart.bar(k + 1, inner, outer, record.colors[term])));
  };
}

// How much less the best future known costs than the first looked at, look by look; one scale for
// all moments.
function searchProgress(record, parent) {
  const all = record.frames.map((m) => m.bestEnergies.map((energy) => energy - m.bestEnergies[0]));
  const longest = Math.max(2, ...all.map((gained) => gained.length));
  const least = Math.min(0, ...all.flat());
  const chart = new Chart(parent, "what thinking gained", SMALL, [1, longest],
    [least || -1, 0], "look");
  return (n) => {
    chart.inner.replaceChildren();
    const gained = all[n].length > 1 ? all[n] : [];
    chart.curve(gained.map((_, i) => i + 1), gained,
      { stroke: "var(--planned)", "stroke-width": 2.4 });
    chart.title.textContent = gained.length
      ? `thinking gained ${rough(gained[gained.length - 1])}` : "no thinking here";
  };
}

function errorOverTime(record, parent) {
  const errors = record.frames.map((m) => m.predictionError);
  const title = `imagined and come, ${count(record.errorByHorizon.length, "step")}: how far apart`;
  const over = new Chart(parent, title, [350, 130], [0, record.end], [0, Math.max(1, ...finite(errors))], "step");
  const still = { stroke: "var(--muted)", "stroke-dasharray": "5 3", "stroke-width": 1 };
  over.curve([0, record.end], [1, 1], still);
  over.curve(record.steps, errors, { stroke: "var(--error)" });
  return over.cursor();
}

function errorByStepsAhead(record, parent) {
  const errors = record.errorByHorizon, to = errors.length;
  const chart = new Chart(parent, "by how far ahead, mean", [210, 130],
    [0.6, to + 0.4], [0, Math.max(1, ...finite(errors))], "steps ahead");
  chart.curve([0.6, to + 0.4], [1, 1],
    { stroke: "var(--muted)", "stroke-dasharray": "5 3", "stroke-width": 1 });
  chart.curve(errors.map((_, i) => i + 1), errors, { stroke: "var(--error)" });
}
