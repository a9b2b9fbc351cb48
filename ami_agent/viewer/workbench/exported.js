// A saved branch: one slides through its moments.
{
  const data = JSON.parse(document.getElementById("data").textContent);
  const id = (name) => document.getElementById(name);
  id("title").textContent = data.title;
  for (const part of data.description) make("p", {}, id("description"), part);
  let shownFrame = data.frames.length - 1;
  id("time").max = shownFrame;
  const show = (n) => {
    shownFrame = Math.min(data.frames.length - 1, Math.max(0, n));
    id("time").value = shownFrame;
    const node = data.frames[shownFrame];
    drawNode(id("plane"), node);
    id("others").replaceChildren(...node.others.map((src) => make("img", { src, alt: "the environment" })));
    id("caption").textContent = describeNode(node);
    energyTable(node, id("energies"));
  };
  layerBoxes(id("layers"), () => show(shownFrame));
  id("time").addEventListener("input", () => show(+id("time").value));
  id("back").addEventListener("click", () => show(shownFrame - 1));
  id("step").addEventListener("click", () => show(shownFrame + 1));
  show(shownFrame);
}
