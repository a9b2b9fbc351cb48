// One panel of a moment: a picture, what is laid over it, and states drawn over both.
const LAYERS = { // in the order of their keys; drawn in that of ORDER
  lived: "lived", chosen: "chosen", considered: "considered", came: "came true", hopes: "subgoals",
  landscape: "critic's landscape",
};
const ORDER = ["lived", "considered", "came", "chosen", "hopes"]; // the last lies above
const DOTTED = new Set(["came", "hopes"]);
const RECENT = 20; // lived steps that are drawn strong
const SHADE = 0.45; // how strong a landscape is beside the picture it is laid over
const on = {}; // by layer, whether it is drawn

const pictured = (source) => Object.assign(new Image(), { src: source });

class Stage {
  constructor(act, panel, chapter, parent) {
    this.act = act;
    this.panel = panel;
    this.error = panel.overlaid && act.ahead.length ? chapter.error : 0;
    const figure = make("figure", {}, parent), box = make("div", { class: "stage" }, figure);
    this.images = panel.images.map(pictured);
    this.shades = panel.overlaid ? chapter.shades.map((shade) => pictured(shade.image)) : [];
    this.canvas = make("canvas", { role: "img", "aria-label": `${panel.name}, ${act.name}` }, box);
    this.canvas.width = panel.width;
    this.canvas.height = panel.height;
    this.svg = make("svg", { viewBox: `-0.5 -0.5 ${panel.width} ${panel.height}`,
      "aria-hidden": "true" }, box);
    const caption = make("figcaption", {}, figure, panel.name);
    if (panel.overlaid) for (const shade of chapter.shades) scale(shade, caption);
  }

  draw(n) {
    const image = this.images[this.panel.shown[n]], pen = this.canvas.getContext("2d");
    const layers = [image, ...(on.landscape ? this.shades : [])];
    const paint = () => {
      if (this.image !== image || !layers.every((layer) => layer.complete)) return;
      layers.forEach((layer, k) => {
        pen.globalAlpha = k ? SHADE : 1;
        pen.globalCompositeOperation = k ? "multiply" : "source-over"; // walls stay what they are
        pen.drawImage(layer, 0, 0, this.canvas.width, this.canvas.height);
      });
    };
    this.image = image;
    for (const layer of layers) layer.onload = paint;
    paint();
    this.svg.replaceChildren();
    if (!this.panel.overlaid) return;
    this.overlay(this.act.moments[n], this.act.steps[n]);
    this.ring();
  }

  // How far off imagined places are drawn.
  ring() {
    if (!this.error) return;
    const r = this.error, { width, height } = this.panel;
    const ring = make("circle", { cx: r + 0.02 * width, cy: height - r - 0.02 * height, r,
      fill: "none", stroke: "var(--chosen)", "stroke-width": 1.4,
      "vector-effect": "non-scaling-stroke" }, this.svg);
    make("title", {}, ring, "imagined places are drawn this far off");
  }

  overlay(moment, step) {
    const path = this.act.path, horizon = moment.chosen.length / 2 - 1;
    const past = path.slice(0, 2 * step + 2), late = Math.max(0, 2 * (step - RECENT));
    const strokes = {
      lived: [[line(past), 2.6, 0.4], [line(past.slice(late)), 2.6, 1]],
      came: [[line(path.slice(2 * step, 2 * (step + horizon) + 2)), 2.4, 0.95]],
      considered: moment.considered.map((future) => [line(future), 1.8, this.faint(moment)]),
      chosen: [[line(moment.chosen), 2.4, 1]],
      hopes: [[moment.hopes.map((hopes) => line([...past.slice(-2), ...hopes])).join(""), 1.8, 1]],
    };
    for (const id of ORDER.filter((layer) => on[layer])) {
      for (const [d, width, opacity] of strokes[id]) this.stroke(id, d, width, opacity);
    }
    this.name(moment);
    if (on.lived) this.dots("lived", past.slice(-2), () => 5);
    if (on.chosen) this.dots("chosen", moment.chosen.slice(2), (k) => 4.2 - 1.6 * k / horizon);
    if (on.hopes) moment.hopes.forEach((hopes) => this.diamond(hopes));
  }

  faint(moment) {
    return Math.min(0.8, Math.max(0.12, 2.4 / Math.sqrt(moment.considered.length)));
  }

  // Lines of what was considered are known by the number of their series of actions; of each there
  // may be several futures.
  name(moment) {
    const lines = [...this.svg.querySelectorAll('[data-layer="considered"]')];
    const each = lines.length / moment.compared, energies = new Map(moment.rivals);
    lines.forEach((drawn, k) => {
      const future = Math.floor(k / each), known = energies.has(future);
      drawn.dataset.future = known ? future : "chosen";
      make("title", {}, drawn, `energy ${brief(known ? energies.get(future) : sum(moment.terms))}`);
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
    make("path", { d, fill: "none", stroke: "var(--hopes)", "stroke-width": 2.2,
      "vector-effect": "non-scaling-stroke" }, this.svg);
  }
}

function scale(shade, parent) {
  make("span", {}, parent, ` · critic: ${shade.unit}, `);
  parent.append(+shade.low.toPrecision(2));
  make("span", { class: "scale", style: `background: linear-gradient(90deg, ${shade.colours})` },
    parent);
  parent.append(+shade.high.toPrecision(2));
}
