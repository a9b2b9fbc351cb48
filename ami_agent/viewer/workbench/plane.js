// Draws a moment: the picture, the path, and the plans over it; and its energies as a table.
"use strict";
const COLORS = { past: "#1e5adc", planned: "#f0591a", candidates: "#8a63d2", before: "#7a4a33",
  subgoals: "#0f8f83", second: "#c2187a", goal: "#1e9646" };
const LAYERS = { past: "past", planned: "plan", before: "plan before the change",
  second: "plan of the second side", candidates: "other candidates", subgoals: "subgoals" };
const DASHED = new Set(["before", "subgoals"]);
const hidden = new Set(); // layers that are not drawn
const HANDLE = 13; // radius of what can be dragged, in pixels of a plane of 640
const images = new Map(); // address of a picture -> its image
const MAX_IMAGES = 60;

// An element with properties, in a parent; text is inserted as text.
function make(tag, properties, parent, text) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  if (text !== undefined) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

const brief = (number) => number === null || number === undefined ? "–" : String(+number.toPrecision(3));

function imageOf(address, then) {
  let image = images.get(address);
  if (!image) {
    if (images.size >= MAX_IMAGES) images.delete(images.keys().next().value);
    image = new Image();
    image.src = address;
    images.set(address, image);
  }
  if (!image.complete) image.addEventListener("load", then, { once: true });
  return image;
}

// Draws a node into a canvas; `ghost`: what is being dragged, and where.
function drawNode(canvas, node, ghost) {
  canvas.node = node;
  canvas.height = Math.round(canvas.width * node.size[1] / node.size[0]);
  const pen = canvas.getContext("2d"), scale = canvas.width / node.size[0];
  pen.fillStyle = "#f5f5f5";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  if (node.picture) {
    const image = imageOf(node.picture, () => canvas.node === node && drawNode(canvas, node, ghost));
    // the picture before stays until this one is decoded
    if (image.complete) canvas.picture = image;
    if (canvas.picture) pen.drawImage(canvas.picture, 0, 0, canvas.width, canvas.height);
  }
  pen.save();
  pen.scale(scale, scale);
  pen.translate(0.5, 0.5);
  pen.lineJoin = pen.lineCap = "round";
  const unit = 1 / scale, [first, second] = node.side_plans, before = node.before[0];
  const here = node.path.slice(-2);
  if (shown("candidates")) {
    pen.globalAlpha = Math.min(0.7, Math.max(0.15, 2.4 / Math.sqrt(first.candidates.length || 1)));
    for (const states of first.candidates) line(pen, states, COLORS.candidates, 2 * unit);
    pen.globalAlpha = 1;
  }
  if (shown("past")) {
    line(pen, node.path, COLORS.past, 4 * unit);
    dot(pen, here, COLORS.past, 7 * unit);
  }
  if (shown("before") && before) {
    pen.setLineDash([8 * unit, 6 * unit]);
    line(pen, before.planned, COLORS.before, 3.4 * unit);
    pen.setLineDash([]);
  }
  if (shown("second") && second) plan(pen, second.planned, COLORS.second, unit);
  if (shown("planned")) plan(pen, first.planned, COLORS.planned, unit, first.edited);
  if (shown("subgoals")) {
    for (const subgoals of first.subgoals) {
      pen.setLineDash([2 * unit, 7 * unit]);
      line(pen, [...here, ...subgoals], COLORS.subgoals, 3 * unit);
      pen.setLineDash([]);
      diamond(pen, subgoals.slice(0, 2), 10 * unit, unit);
    }
  }
  if (node.goal) ring(pen, node.goal, COLORS.goal, HANDLE * unit, unit);
  if (ghost) ring(pen, ghost.xy, ghost.what === "goal" ? COLORS.goal : COLORS.past, HANDLE * unit, unit);
  pen.restore();
}

const shown = (layer) => !hidden.has(layer);
const isPoint = (points, i) => points[i] !== null && points[i + 1] !== null;

function line(pen, points, color, width) {
  pen.beginPath();
  for (let i = 0; i < points.length; i += 2) if (isPoint(points, i)) pen.lineTo(points[i], points[i + 1]);
  pen.strokeStyle = color;
  pen.lineWidth = width;
  pen.stroke();
}

function dot(pen, [x, y], color, radius) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 7);
  pen.fillStyle = color;
  pen.fill();
  pen.strokeStyle = "#fff";
  pen.lineWidth = radius / 4;
  pen.stroke();
}

function ring(pen, [x, y], color, radius, unit) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 7);
  pen.strokeStyle = color;
  pen.lineWidth = 3 * unit;
  pen.stroke();
}

function diamond(pen, [x, y], r, unit) {
  pen.beginPath();
  for (const [dx, dy] of [[0, -r], [r, 0], [0, r], [-r, 0]]) pen.lineTo(x + dx, y + dy);
  pen.closePath();
  pen.strokeStyle = COLORS.subgoals;
  pen.lineWidth = 3 * unit;
  pen.stroke();
}

function plan(pen, points, color, unit, edited) {
  line(pen, points, color, 3.6 * unit);
  for (let i = 2; i < points.length; i += 2) {
    const radius = (edited === i / 2 - 1 ? 9 : 6 - 3 * i / points.length) * unit;
    if (isPoint(points, i)) dot(pen, points.slice(i, i + 2), color, radius);
  }
}

// The moment in words.
function describeNode(node) {
  const [side_plan] = node.side_plans, before = node.before[0];
  const energy = side_plan.energy === null ? "Mode-1 computes no energy"
    : `energy ${brief(side_plan.energy)}${before && before.energy !== null ? ` (before ${brief(before.energy)})` : ""}`;
  return [`seed ${node.seed}, step ${node.step}`, node.label && `changed: ${node.label}`, energy,
    node.success ? "success" : "", node.done ? "the episode has ended" : "",
    `planned in ${brief(side_plan.ms)} ms`].filter(Boolean).join(" · ");
}

// The energies by term: of the plan, of the one before the change, and of the second side.
function energyTable(node, parent) {
  parent.replaceChildren();
  const [first, second] = node.side_plans, before = node.before[0];
  const columns = [["now", first], ["before", before], ["second side", second]].filter(([, t]) => t);
  const table = make("table", {}, parent), head = make("tr", {}, make("thead", {}, table));
  make("th", {}, head, "term");
  for (const [name] of columns) make("th", {}, head, name);
  const names = new Set(columns.flatMap(([, side_plan]) => Object.keys(side_plan.terms)));
  const body = make("tbody", {}, table);
  const row = (name, of) => {
    const cells = make("tr", {}, body);
    make("th", {}, cells, name);
    for (const [, side_plan] of columns) make("td", {}, cells, of(side_plan));
  };
  for (const name of names) row(name, (side_plan) => brief(side_plan.terms[name]));
  row("sum", (side_plan) => brief(side_plan.energy));
  row("critic's estimate", (side_plan) => brief(side_plan.value));
  row("mode", (side_plan) => side_plan.settings.mode);
  row("planner", (side_plan) => side_plan.settings.planner);
  row("horizon", (side_plan) => side_plan.settings.horizon);
}

// Check boxes for the layers, which are also the key to their colours.
function layerBoxes(parent, redraw) {
  for (const [layer, name] of Object.entries(LAYERS)) {
    const label = make("label", {}, parent), box = make("input", { type: "checkbox", checked: true }, label);
    const swatch = make("span", { className: DASHED.has(layer) ? "swatch dashed" : "swatch" }, label);
    swatch.style.borderTopColor = COLORS[layer];
    label.append(name);
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(layer); else hidden.add(layer);
      redraw();
    });
  }
}
