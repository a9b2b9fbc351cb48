// Charts of a record. Each function draws one into `parent` and returns the function that moves it
// to another step.

// ---- elements

const SVG_TAGS = "svg path circle line rect text g title".split(" ");

function make(name, attributes, parent, text) {
  const element = SVG_TAGS.includes(name)
    ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

// Points in one flat list [x, y, x, y, ...] -> the `d` of a path.
function line(points) {
  let d = "";
  for (let i = 0; i < points.length; i += 2) d += (i ? "L" : "M") + points[i] + " " + points[i + 1];
  return d;
}

function ticks(low, high, count) {
  const least = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(least));
  const step = power * [1, 2, 5, 10].find((n) => n * power >= least * 0.999);
  const found = [];
  for (let x = Math.ceil(low / step) * step; x <= high + step * 1e-6; x += step) found.push(x);
  return found;
}

// ---- charts

const LEFT = 44, BOTTOM = 22, TOP = 6;
const SMALL = [160, 104];

class Chart {
  // The x axis goes from `from` to `to` and has the label `label`, the y axis from `least` to `most`.
  constructor(parent, title, [wide, high], [from, to], [least, most], label) {
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
    this.label = label;
    this.axes();
  }

  axes() {
    for (const v of ticks(this.least, this.most, 3)) {
      const y = this.y(v);
      make("line", { x1: LEFT, x2: this.wide - 6, y1: y, y2: y, stroke: "var(--line)" }, this.scale);
      make("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, this.scale, brief(v));
    }
    for (const v of ticks(this.from, this.to, 6)) {
      const room = this.label ? 14 + 6 * this.label.length : 0; // the label takes this width
      if (!Number.isInteger(v) || this.x(v) > this.wide - room) continue;
      make("text", { x: this.x(v), y: this.base + 15, "text-anchor": "middle" }, this.scale, v);
    }
    make("text", { x: this.wide - 6, y: this.base + 15, "text-anchor": "end" }, this.scale, this.label);
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
    const edge = (ys) => xs.map((x, i) => [this.x(x).toFixed(1), this.y(ys[i]).toFixed(1)]);
    const outline = [...edge(outer), ...edge(inner).reverse()].flat();
    make("path", { d: line(outline) + "Z", fill: color, opacity: 0.8 }, this.inner);
  }

  bar(x, inner, outer, color) {
    const [a, b] = [this.y(inner), this.y(outer)], wide = this.x(1.7) - this.x(1);
    return make("rect", { x: this.x(x) - wide / 2, width: wide, y: Math.min(a, b),
      height: Math.abs(a - b), fill: color, opacity: 0.85 }, this.inner);
  }

  verticalLine(x, attributes) {
    return make("line", { x1: this.x(x), x2: this.x(x), y1: TOP, y2: this.base, ...attributes },
      this.inner);
  }

  // The branch that leads to a node of a search tree.
  branch(node, tree) {
    const points = [node.parent, node].flatMap(({ depth, height }) =>
      [this.x(depth).toFixed(1), this.y(0.05 + 0.9 * height / tree.most).toFixed(1)]);
    const path = make("path", { d: line(points), fill: "none", "stroke-linecap": "round",
      stroke: node.planned ? "var(--planned)" : "var(--candidates)",
      opacity: node.planned || node.visits > 1 ? 1 : 0.45,
      "stroke-width": 0.8 + 5 * Math.sqrt(node.visits / tree.root.visits) }, this.inner);
    make("title", {}, path, `option ${node.choice} at step ${node.depth}: `
      + `${count(node.visits, "simulation")}, mean energy ${brief(node.total / node.visits)}`);
  }

  // A vertical line at the current step; a click in the chart moves it.
  cursor() {
    const cursor = this.verticalLine(this.from, { stroke: "var(--text)", "stroke-width": 1.2 });
    this.svg.classList.add("seek");
    this.svg.addEventListener("pointerdown", (event) => {
      const box = this.svg.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width * this.wide;
      const fraction = (x - LEFT) / (this.wide - LEFT - 6);
      stop();
      seek(Math.round(this.from + fraction * (this.to - this.from)));
    });
    return (x) => { cursor.setAttribute("x1", this.x(x)); cursor.setAttribute("x2", this.x(x)); };
  }
}

// Stacked terms, positive ones above zero and negative ones below -> [inner, outer] of each.
function stacked(terms) {
  let above = 0, below = 0;
  return terms.map((term) => {
    const inner = term > 0 ? above : below;
    if (term > 0) above += term; else below += term;
    return [inner, inner + term];
  });
}

function bounds(stacks, others) {
  const all = [0, ...stacks.flat(2), ...finite(others)];
  return [Math.min(...all), Math.max(...all)];
}

// Energy and critic over time, in one chart where both are about the goal.
function energyOverTime(record, parent) {
  const hasSubgoals = record.layers.includes("subgoals"), both = !hasSubgoals && record.terms.length > 0;
  const move = [];
  if (record.terms.length) move.push(energyChart(record, parent, hasSubgoals, both && record.unit));
  if (record.unit && !both) move.push(criticChart(record, parent));
  return (step) => move.forEach((each) => each(step));
}

function energyChart(record, parent, hasSubgoals, critic) {
  const steps = record.steps, stacks = record.frames.map((frame) => stacked(frame.terms));
  const title = `energy of the plan${hasSubgoals ? " to the subgoal" : ""}, by term`;
  const chart = new Chart(parent, title, [560, 170], [0, record.end],
    bounds(stacks, critic ? criticValues(record) : []), "step");
  record.terms.forEach((name, n) => {
    const [inner, outer] = [0, 1].map((side) => stacks.map((stack) => stack[n][side]));
    chart.area(steps, inner, outer, record.colors[n]);
  });
  const keys = make("p", {}, chart.box);
  record.terms.forEach((name, n) => key(keys, name, record.colors[n]));
  if (critic) drawCritic(record, chart, keys); else drawSuccess(record, chart, keys);
  return chart.cursor();
}

function criticChart(record, parent) {
  const chart = new Chart(parent, `critic's estimate of ${record.unit}`, [560, 130], [0, record.end],
    bounds([], criticValues(record)), "step");
  drawCritic(record, chart, make("p", {}, chart.box));
  return chart.cursor();
}

// Whether the steps that were still to go can be drawn beside the critic's estimate.
const hasStepCount = (record) => record.unit === "steps to go" && record.successStep !== null;
const criticValues = (record) =>
  [...record.frames.map((frame) => frame.criticValue), ...(hasStepCount(record) ? [record.successStep] : [])];

function drawCritic(record, chart, keys) {
  chart.curve(record.steps, record.frames.map((frame) => frame.criticValue),
    { stroke: "var(--text)", "stroke-dasharray": "5 3" });
  key(keys, `dashed: critic's estimate of ${record.unit}`, "var(--text)");
  if (hasStepCount(record)) {
    chart.curve([0, record.successStep], [record.successStep, 0], { stroke: "var(--text)" });
    key(keys, `solid: actual ${record.unit}`, "var(--text)");
  }
  drawSuccess(record, chart, keys);
}

function drawSuccess(record, chart, keys) {
  if (record.successStep === null) return;
  chart.verticalLine(record.successStep, { stroke: "var(--success)", "stroke-width": 1.6 });
  key(keys, `vertical line: ${record.successLabel}`, "var(--success)");
}

function key(parent, name, color) {
  make("span", { class: "key", style: `--ink: ${color}` }, parent, name);
}

// The energy of the plan and of the other candidates; a bar and its line in the picture have the
// same `data-candidate`.
function candidateEnergies(record, parent) {
  const all = record.frames.map((frame) => [["planned", sum(frame.terms)], ...frame.otherCandidates]);
  const most = Math.max(...all.map((energies) => energies.length));
  const chart = new Chart(parent, "candidate energies", SMALL, [0.4, most + 0.6],
    bounds([], all.flat().map(([, energy]) => energy)), "");
  return (n) => {
    chart.inner.replaceChildren();
    all[n].forEach(([candidate, energy], k) => {
      const bar = chart.bar(k + 1, 0, energy, k ? "var(--candidates)" : "var(--planned)");
      bar.dataset.candidate = candidate;
      make("title", {}, bar, `energy ${brief(energy)}`);
    });
  };
}

// The energy of every single imagined step of the plan; one scale for all steps of the episode.
function energyAhead(record, parent) {
  const horizon = record.frames[0].stepEnergies.length;
  const all = record.frames.map((frame) => frame.stepEnergies.map(stacked));
  const chart = new Chart(parent, "energy by step", SMALL, [0.4, horizon + 0.6],
    bounds(all.flat(), []), "ahead");
  return (n) => {
    chart.inner.replaceChildren();
    all[n].forEach((stack, k) => stack.forEach(([inner, outer], term) =>
      chart.bar(k + 1, inner, outer, record.colors[term])));
  };
}

// What a tree search simulated: equal beginnings are one branch, thicker the more simulations follow
// it; the plan's branch is the one in colour.
function searchTree(record, parent) {
  const trees = record.frames.map((frame) => frame.tree && grown(frame.tree));
  const first = trees.find(Boolean), depth = first ? first.depth : 1;
  const chart = new Chart(parent, "search tree", [560, 150], [0, depth], [0, 1], "ahead");
  chart.scale.querySelectorAll('[text-anchor="end"], line').forEach((part) => part.remove());
  return (n) => {
    chart.inner.replaceChildren();
    const tree = trees[n];
    chart.title.textContent = tree
      ? `search tree of ${count(tree.root.visits, "simulation")}` : "no search at this step";
    if (tree) for (const node of tree.nodes) chart.branch(node, tree); // the plan on top
  };
}

// Simulated choices -> the nodes of their tree, each with its simulations, their mean energy, and a
// height between 0 and 1 by which branches don't cross.
function grown({ choices, energies, planned }) {
  const root = { depth: 0, visits: 0, total: 0, children: new Map(), planned: true }, nodes = [];
  choices.forEach((sequence, k) => {
    let node = root;
    node.visits += 1;
    for (const choice of sequence) {
      if (!node.children.has(choice)) {
        const isPlanned = node.planned && planned[node.depth] === choice;
        const child = { depth: node.depth + 1, choice, parent: node, visits: 0, total: 0,
          children: new Map(), planned: isPlanned };
        node.children.set(choice, child);
        nodes.push(child);
      }
      node = node.children.get(choice);
      node.visits += 1;
      node.total += energies[k];
    }
  });
  let leaves = 0;
  const place = (node) => {
    const children = [...node.children.values()].sort((a, b) => a.choice - b.choice);
    children.forEach(place);
    node.height = children.length ? sum(children.map((child) => child.height)) / children.length : leaves++;
  };
  place(root);
  nodes.sort((a, b) => a.planned - b.planned);
  return { root, nodes, most: Math.max(1, leaves - 1), depth: planned.length };
}

// The lowest energy so far after each round of the search, relative to the first; one scale for all
// steps of the episode.
function searchProgress(record, parent) {
  const all = record.frames.map(({ bestEnergies }) => bestEnergies.map((energy) => energy - bestEnergies[0]));
  const longest = Math.max(2, ...all.map((changes) => changes.length));
  const least = Math.min(0, ...all.flat());
  const chart = new Chart(parent, "search progress", SMALL, [1, longest],
    [least || -1, 0], "round");
  return (n) => {
    chart.inner.replaceChildren();
    const changes = all[n].length > 1 ? all[n] : [];
    chart.curve(changes.map((_, i) => i + 1), changes,
      { stroke: "var(--planned)", "stroke-width": 2.4 });
    chart.title.textContent = changes.length
      ? `search progress ${rough(changes[changes.length - 1])}` : "no search at this step";
  };
}

const NO_CHANGE = { stroke: "var(--muted)", "stroke-dasharray": "5 3", "stroke-width": 1 };

function errorOverTime(record, parent) {
  const errors = record.frames.map((frame) => frame.predictionError);
  const title = `prediction error, mean over ${count(record.errorByHorizon.length, "step")} ahead`;
  const chart = new Chart(parent, title, [350, 130], [0, record.end],
    [0, Math.max(1, ...finite(errors))], "step");
  chart.curve([0, record.end], [1, 1], NO_CHANGE);
  chart.curve(record.steps, errors, { stroke: "var(--error)" });
  return chart.cursor();
}

function errorByStepsAhead(record, parent) {
  const errors = record.errorByHorizon, to = errors.length;
  const chart = new Chart(parent, "the same by steps ahead", [210, 130],
    [0.6, to + 0.4], [0, Math.max(1, ...finite(errors))], "steps ahead");
  chart.curve([0.6, to + 0.4], [1, 1], NO_CHANGE);
  chart.curve(errors.map((_, i) => i + 1), errors, { stroke: "var(--error)" });
}
