// The workbench: shows what the server sends, and sends what a person changes.
"use strict";
const id = (name) => document.getElementById(name);
const plane = id("plane"), pinnedPlane = id("pinned-plane");
const client = crypto.getRandomValues(new Uint32Array(4)).join("-");
let start = null, view = null, drag = null, playing = false, turn = Promise.resolve();

// the connection

async function post(resource, message) {
  const answer = await fetch(resource, { method: "POST", headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ client, ...message }) });
  if (!answer.ok) {
    const text = await answer.text();
    let reason = text || answer.statusText;
    try { reason = JSON.parse(text).error; } catch { /* not from the workbench */ }
    throw new Error(reason);
  }
  return answer;
}

// Does something, after what was done before; what can't be done is said, and the page goes on.
function act(name, message) {
  turn = turn.then(() => send(name, message));
  return turn;
}

async function send(name, message) {
  try {
    const answer = await post("do", { do: name, ...message });
    show(await answer.json());
    say("");
    return true;
  } catch (error) {
    say(error.message);
    if (view) render(true);
    return false;
  }
}

const say = (text) => { id("error").textContent = text; };

function listen() {
  const events = new EventSource("events");
  let lost = false;
  events.onmessage = (event) => {
    if (lost) say("");
    lost = false;
    show(JSON.parse(event.data));
  };
  events.onerror = () => {
    lost = true;
    say("there is no connection to the workbench; the page tries again");
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, 5000);
  };
}

function show(newView) {
  if (view && newView.view < view.view) return;
  const isNew = !view || newView.view !== view.view;
  view = newView;
  if (isNew) render(false);
}

// what is seen

function render(restore) {
  const node = view.node;
  drawPlanes();
  id("caption").textContent = describeNode(node);
  id("others").replaceChildren(...node.others.map((src) => make("img", { src, alt: "the environment" })));
  if (view.pinned) id("pinned-caption").textContent = describeNode(view.pinned);
  energyTable(node, id("energies"));
  renderBranches();
  renderActions(restore);
  view.sides.forEach((side, n) => renderSide(n, side, restore));
  while (id("sides").children.length > view.sides.length) id("sides").lastChild.remove();
  const others = view.actor && view.actor !== client;
  id("who").replaceChildren(others ? "Another page acts; this one looks on. "
    : view.actor ? "This page acts; others look on." : "No page has acted yet.");
  if (others) make("button", {}, id("who"), "act here").addEventListener("click", () => act("take"));
  id("status").textContent = view.status;
  id("pin").setAttribute("aria-pressed", String(Boolean(view.pinned)));
  id("compare").setAttribute("aria-pressed", String(view.sides.length > 1));
  id("step").disabled = node.done;
  plane.title = ["goal", "agent"].map((what) => view.obstacles[what] || `the ${what} can be dragged`).join("; ");
}

function drawPlanes() {
  drawNode(plane, view.node, drag && { what: drag.what, xy: drag.xy });
  id("pinned").hidden = !view.pinned;
  if (view.pinned) drawNode(pinnedPlane, view.pinned);
}

function renderBranches() {
  const list = id("branches"), total = Math.max(...view.branches.map((b) => b.start + b.ids.length));
  while (list.children.length > view.branches.length) list.lastChild.remove();
  view.branches.forEach((branch, n) => {
    let row = list.children[n];
    if (!row) {
      row = make("div", { className: "branch" }, list);
      make("span", {}, row);
      const strip = make("canvas", { width: 600, height: 18, role: "img" }, row);
      make("span", { className: "outcome" }, row);
      strip.addEventListener("click", (event) => {
        const at = event.offsetX / strip.clientWidth * strip.total - strip.branch.start;
        const index = Math.min(strip.branch.ids.length - 1, Math.max(0, Math.floor(at)));
        act("go", { node: strip.branch.ids[index] });
      });
    }
    const [name, strip, outcome] = row.children;
    const isTip = branch.ids.includes(view.tip) && view.tip !== view.node.id;
    name.textContent = branch.label || "branch";
    outcome.textContent = branch.outcome + (branch.ended ? ", ended" : "") + (isTip ? " · the agent's own" : "");
    strip.branch = branch;
    strip.total = total;
    strip.setAttribute("aria-label", `${name.textContent}: steps ${branch.start} to ${branch.start + branch.ids.length - 1}`);
    const pen = strip.getContext("2d"), width = strip.width / total;
    pen.clearRect(0, 0, strip.width, strip.height);
    pen.fillStyle = "#9fb4e6";
    pen.fillRect(branch.start * width, 7, branch.ids.length * width, 4);
    for (const [nodeId, color] of [[view.pinned && view.pinned.id, COLORS.second], [view.node.id, COLORS.planned]]) {
      const index = branch.ids.indexOf(nodeId);
      if (index >= 0) dot(pen, [(branch.start + index + 0.5) * width, 9], color, 6);
    }
  });
}

function renderActions(restore) {
  const [side_plan] = view.node.side_plans, box = id("actions");
  const key = `${side_plan.actions.length} ${start.actionNames.length}`;
  if (box.dataset.key !== key) {
    box.dataset.key = key;
    box.replaceChildren();
    const table = make("table", {}, box), head = make("tr", {}, make("thead", {}, table));
    make("th", {}, head, start.choices.length ? "choice" : "number");
    side_plan.actions.forEach((_, step) => make("th", {}, head, `step ${step + 1}`));
    const body = make("tbody", {}, table);
    const rows = start.choices.length ? start.choices : start.actionNames;
    rows.forEach((name, k) => {
      const row = make("tr", {}, body);
      make("th", {}, row, String(k + 1));
      side_plan.actions.forEach((_, step) => {
        const cell = make("td", {}, row), label = `step ${step + 1}, number ${k + 1}`;
        const input = start.choices.length ? make("select", { "aria-label": label }, cell)
          : make("input", { inputMode: "decimal", "aria-label": label }, cell);
        if (start.choices.length) for (let j = 0; j < name; j += 1) make("option", { value: j }, input, String(j));
        input.dataset.step = step;
        input.dataset.number = k;
        input.addEventListener("change", () => editAction(step, k, input.value));
      });
    });
  }
  for (const input of box.querySelectorAll("[data-step]")) {
    const action = side_plan.actions[input.dataset.step], number = +input.dataset.number;
    input.classList.toggle("edited", side_plan.edited === +input.dataset.step);
    if (document.activeElement === input && !restore) continue;
    if (start.choices.length) {
      const first = start.choices.slice(0, number).reduce((a, b) => a + b, 0);
      const part = action.slice(first, first + start.choices[number]);
      input.value = part.indexOf(Math.max(...part));
    } else input.value = brief(action[number]);
  }
}

function editAction(step, number, value) {
  const action = [...view.node.side_plans[0].actions[step]];
  if (start.choices.length) {
    const first = start.choices.slice(0, number).reduce((a, b) => a + b, 0);
    for (let j = 0; j < start.choices[number]; j += 1) action[first + j] = j === +value ? 1 : 0;
  } else action[number] = value.trim() === "" ? "" : value;
  return act("edit", { step, action });
}

// The form of a side is made once; its numbers are those of the plan that is shown.
function renderSide(n, side, restore) {
  const side_plan = view.node.side_plans[n];
  let form = id("sides").children[n];
  const key = JSON.stringify([side, n]);
  if (!form || form.dataset.key !== key) {
    const made = sideForm(n, side);
    made.dataset.key = key;
    if (form) form.replaceWith(made); else id("sides").append(made);
    form = made;
  }
  const { settings } = side_plan;
  for (const input of form.querySelectorAll("[data-setting]")) {
    if (document.activeElement === input && input.type !== "checkbox" && !restore) continue;
    const { setting, name } = input.dataset;
    if (setting === "without") input.checked = settings.without.includes(name);
    else if (setting === "weight" || setting === "drive") input.value = brief(settings.weights[name] || 0);
    else input.value = settings[setting];
  }
}

function sideForm(n, side) {
  const form = make("fieldset", {});
  make("legend", {}, form, side.name);
  const field = (text, setting, name, input) => {
    input.dataset.setting = setting;
    input.dataset.name = name;
    input.addEventListener("change", () => act("change",
      { side: n, setting, name, value: input.type === "checkbox" ? input.checked : input.value }));
    return input;
  };
  const labelled = (text, setting, name, tag, properties) => {
    const label = make("label", {}, form, text);
    return field(text, setting, name, make(tag, properties || {}, label));
  };
  const number = { inputMode: "decimal", autocomplete: "off" };
  for (const [text, setting, options] of [["mode", "mode", side.modes], ["planner", "planner", side.planners]]) {
    const select = labelled(text, setting, "", "select");
    for (const option of options) make("option", { value: option }, select, option);
  }
  labelled("horizon, in steps", "horizon", "", "input", number);
  labelled("iterations", "iterations", "", "input", number);
  const risk = labelled("risk: fraction of worst futures", "cvar_alpha", "", "input", number);
  if (side.risk) {
    risk.disabled = true;
    make("p", { className: "note" }, form, side.risk);
  }
  make("h3", {}, form, "weights of the costs");
  for (const name of side.weights) labelled(name, "weight", name, "input", number);
  if (side.drives.length) make("h3", {}, form, "weights of the drives");
  for (const name of side.drives) labelled(name, "drive", name, "input", number);
  if (side.removable.length) make("h3", {}, form, "modules taken out");
  for (const name of side.removable) {
    const label = make("label", { className: "check" }, form);
    field(name, "without", name, make("input", { type: "checkbox" }, label));
    label.append(name);
  }
  return form;
}

// what a person does

function position(event) {
  const scale = view.node.size[0] / plane.clientWidth;
  return [event.offsetX * scale - 0.5, event.offsetY * scale - 0.5];
}

function grabbed(event) {
  const [x, y] = position(event), reach = 1.6 * HANDLE * view.node.size[0] / plane.width;
  const near = (at) => at && Math.hypot(at[0] - x, at[1] - y) < reach;
  return near(view.node.goal) ? "goal" : near(view.node.path.slice(-2)) ? "agent" : "";
}

plane.addEventListener("pointerdown", (event) => {
  const what = grabbed(event);
  if (!what) return;
  if (view.obstacles[what]) return say(view.obstacles[what]);
  plane.setPointerCapture(event.pointerId);
  drag = { what, xy: position(event), gesture: `${client} ${event.timeStamp}`, sent: true, busy: false };
});
plane.addEventListener("pointermove", (event) => {
  if (!drag) {
    if (view) plane.style.cursor = grabbed(event) ? "grab" : "default";
    return;
  }
  Object.assign(drag, { xy: position(event), since: event.timeStamp, sent: false });
  drawPlanes();
  follow(drag);
});
for (const name of ["pointerup", "pointercancel"]) {
  plane.addEventListener(name, () => {
    const ended = drag;
    drag = null;
    if (!ended || ended.since === undefined) return;
    Object.assign(ended, { isFinal: true, sent: false });
    follow(ended);
  });
}

const afterPaint = (then) => requestAnimationFrame(() => setTimeout(then, 0));

// Sends the latest position, one request at a time.
async function follow(gesture) {
  if (gesture.busy) return;
  gesture.busy = true;
  while (!gesture.sent) {
    gesture.sent = true;
    const { what, since, xy: [x, y], gesture: name, isFinal } = gesture;
    const isDone = await act("place", { what, x, y, gesture: name, final: Boolean(isFinal) });
    if (isDone && !isFinal) afterPaint(() => performance.measure("drag to plan", { start: since }));
  }
  gesture.busy = false;
}

async function play() {
  playing = !playing;
  id("play").setAttribute("aria-pressed", String(playing));
  while (playing && !view.node.done && await act("step")) await new Promise((go) => setTimeout(go, 60));
  playing = false;
  id("play").setAttribute("aria-pressed", "false");
}

// files

// The planes with a caption, as one canvas.
function pictureOf(nodes) {
  const canvas = make("canvas", { width: 640 * nodes.length, height: 700 }), pen = canvas.getContext("2d");
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  nodes.forEach((node, n) => {
    const one = make("canvas", { width: 640, height: 640 });
    drawNode(one, node);
    const height = Math.min(640, one.height), width = one.width * height / one.height;
    pen.drawImage(one, 640 * n, 0, width, height);
    pen.fillStyle = "#22262e";
    pen.font = "15px system-ui, sans-serif";
    write(pen, describeNode(node), 640 * n + 10, 660);
  });
  return canvas;
}

// Text in lines that break between its parts.
function write(pen, text, x, y) {
  let words = "";
  for (const part of text.split(" · ")) {
    const longer = words ? `${words} · ${part}` : part;
    if (words && pen.measureText(longer).width > 620) {
      pen.fillText(words, x, y);
      y += 19;
      words = part;
    } else words = longer;
  }
  pen.fillText(words, x, y);
}

const loaded = (frames) => Promise.all(frames.filter((frame) => frame.picture)
  .map((frame) => imageOf(frame.picture, () => {}).decode()));

// What is seen as a file: "page", "png" or "film".
async function exported(kind) {
  const node = view.node.id;
  if (kind === "page") return (await post("page", { node })).blob();
  if (kind === "png") {
    const nodes = [view.node, ...(view.pinned ? [view.pinned] : [])];
    await loaded(nodes);
    return new Promise((go) => pictureOf(nodes).toBlob(go, "image/png"));
  }
  const { frames } = await (await post("branch", { node })).json(), pictures = [];
  for (const frame of frames) {
    await loaded([frame]);
    pictures.push(pictureOf([frame]).toDataURL("image/jpeg", 0.9));
  }
  return (await post("film", { frames: pictures })).blob();
}

async function save(kind, name) {
  try {
    say("");
    const link = make("a", { href: URL.createObjectURL(await exported(kind)), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  } catch (error) {
    say(error.message);
  }
}

for (const name of ["back", "step", "branch"]) id(name).addEventListener("click", () => act(name));
id("play").addEventListener("click", play);
id("pin").addEventListener("click", () => act("pin", { node: view.pinned ? null : view.node.id }));
id("compare").addEventListener("click", () => act("compare", { on: view.sides.length < 2 }));
id("begin").addEventListener("click", () => act("begin", { seed: id("seed").value }));
id("save-page").addEventListener("click", () => save("page", "workbench.html"));
id("save-png").addEventListener("click", () => save("png", "workbench.png"));
id("save-film").addEventListener("click", () => save("film", "workbench.mp4"));
document.addEventListener("keydown", (event) => {
  if (event.target !== document.body) return;
  if (event.key === "ArrowLeft") act("back");
  if (event.key === "ArrowRight" && !view.node.done) act("step");
});

(async () => {
  start = await (await fetch("start")).json();
  id("title").textContent = document.title = start.title;
  for (const part of start.description) make("p", {}, id("description"), part);
  layerBoxes(id("layers"), () => view && drawPlanes());
  listen();
})();
