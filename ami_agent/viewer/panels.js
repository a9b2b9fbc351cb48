// One panel of a step: a picture, images laid over it, and states drawn over both.
const LAYERS = { // labels, in the order of their check boxes
  past: "past", planned: "planned", candidates: "candidates", actual: "actual future",
  subgoals: "subgoals, in order", criticMap: "critic map",
};
const ORDER = ["past", "candidates", "actual", "planned", "subgoals"]; // the last is drawn on top
const DOTTED = new Set(["actual", "subgoals"]);
const RECENT = 20; // past steps that are drawn opaque
const OVERLAY_ALPHA = 0.45; // opacity of a critic map over the picture
const on = {}; // layer -> whether it is drawn

const loadImage = (source) => Object.assign(new Image(), { src: source });

class PanelView {
  constructor(record, panel, seedRecord, parent) {
    this.record = record;
    this.panel = panel;
    this.error = panel.overlaid && record.errorByHorizon.length ? seedRecord.error : 0;
    const figure = make("figure", {}, parent), box = make("div", { class: "panel" }, figure);
    this.images = panel.images.map(loadImage);
    this.overlays = panel.overlaid ? seedRecord.overlays.map((overlay) => loadImage(overlay.image)) : [];
    this.canvas = make("canvas", { role: "img", "aria-label": `${panel.name}, ${record.name}` }, box);
    this.canvas.width = panel.width;
    this.canvas.height = panel.height;
    this.svg = make("svg", { viewBox: `-0.5 -0.5 ${panel.width} ${panel.height}`,
      "aria-hidden": "true" }, box);
    const caption = make("figcaption", {}, figure, panel.name);
    if (panel.axes.length) {
      caption.append(`: → ${panel.axes[0]}, ↑ ${panel.axes[1]}`);
    }
    if (panel.overlaid) for (const overlay of seedRecord.overlays) colourScale(overlay, caption);
  }

  draw(n) {
    const image = this.images[this.panel.shown[n]], pen = this.canvas.getContext("2d");
    const layers = [image, ...(on.criticMap ? this.overlays : [])];
    const paint = () => {
      if (this.image !== image || !layers.every((layer) => layer.complete)) return;
      layers.forEach((layer, k) => {
        pen.globalAlpha = k ? OVERLAY_ALPHA : 1;
        pen.globalCompositeOperation = k ? "multiply" : "source-over"; // walls stay dark
        pen.drawImage(layer, 0, 0, this.canvas.width, this.canvas.height);
      });
    };
    this.image = image;
    for (const layer of layers) layer.onload = paint;
    paint();
    this.svg.replaceChildren();
    if (!this.panel.overlaid) return;
    this.drawStates(this.record.frames[n], this.record.steps[n]);
    this.ring();
  }

  // The error with which imagined states are drawn, as the radius of a ring.
  ring() {
    if (!this.error) return;
    const r = this.error, { width, height } = this.panel;
    const ring = make("circle", { cx: r + 0.02 * width, cy: height - r - 0.02 * height, r,
      fill: "none", stroke: "var(--planned)", "stroke-width": 1.4,
      "vector-effect": "non-scaling-stroke" }, this.svg);
    make("title", {}, ring, "error of the drawn positions of imagined states");
  }

  drawStates(frame, step) {
    const path = this.record.path, horizon = frame.planned.length / 2 - 1;
    const past = path.slice(0, 2 * step + 2), recent = Math.max(0, 2 * (step - RECENT));
    const strokes = {
      past: [[line(past), 2.6, 0.4], [line(past.slice(recent)), 2.6, 1]],
      actual: [[line(path.slice(2 * step, 2 * (step + horizon) + 2)), 2.4, 0.95]],
      candidates: frame.candidates.map((states) => [line(states), 1.8, this.opacity(frame)]),
      planned: [[line(frame.planned), 2.4, 1]],
      subgoals: [[frame.subgoals.map((subgoals) => line([...past.slice(-2), ...subgoals])).join(""), 1.8, 1]],
    };
    for (const id of ORDER.filter((layer) => on[layer])) {
      for (const [d, width, opacity] of strokes[id]) this.stroke(id, d, width, opacity);
    }
    this.label(frame);
    if (on.past) this.dots("past", past.slice(-2), () => 5);
    if (on.planned) this.dots("planned", frame.planned.slice(2), (k) => 4.2 - 1.6 * k / horizon);
    if (on.subgoals) frame.subgoals.forEach((subgoals) => this.diamond(subgoals));
  }

  opacity(frame) {
    return Math.min(0.8, Math.max(0.12, 2.4 / Math.sqrt(frame.candidates.length)));
  }

  // Gives each candidate's lines its index, as its bar has it; an action sequence has a line for each
  // sampled future.
  label(frame) {
    const lines = [...this.svg.querySelectorAll('[data-layer="candidates"]')];
    const each = lines.length / frame.numCandidates, energies = new Map(frame.otherCandidates);
    lines.forEach((path, k) => {
      const candidate = Math.floor(k / each), isOther = energies.has(candidate);
      path.dataset.candidate = isOther ? candidate : "planned";
      const energy = isOther ? energies.get(candidate) : sum(frame.terms);
      make("title", {}, path, `energy ${brief(energy)}`);
    });
  }

  stroke(id, d, width, opacity) {
    make("path", { d, fill: "none", "data-layer": id, stroke: `var(--${id})`,
      "stroke-width": width, opacity,
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
    make("path", { d, fill: "none", stroke: "var(--subgoals)", "stroke-width": 2.2,
      "vector-effect": "non-scaling-stroke" }, this.svg);
  }
}

function colourScale(overlay, parent) {
  make("span", {}, parent, ` · critic's estimate of ${overlay.unit}: `);
  parent.append(+overlay.low.toPrecision(2));
  make("span", { class: "scale", style: `background: linear-gradient(90deg, ${overlay.colors})` },
    parent);
  parent.append(+overlay.high.toPrecision(2));
}
