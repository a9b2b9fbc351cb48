"""One page for all episodes: images inside, a slider for each, nothing fetched from anywhere."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import NamedTuple

import numpy as np
from PIL import Image


class Chapter(NamedTuple):
    """What the page shows of one episode."""

    title: str
    frames: Sequence[Image.Image]
    sheet: np.ndarray  # uint8 [h, w, 3]


PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>$title</title>
<meta name="viewport" content="width=device-width">
<style>
 body { font: 16px/1.5 system-ui, sans-serif; color: #22262e; max-width: 1180px;
        margin: 2.5rem auto; padding: 0 1.5rem }
 h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.1rem; margin: 0 0 .6rem }
 p { color: #767d8a; max-width: 46rem }
 section { border-top: 1px solid #e6e8ec; padding: 1.6rem 0 }
 .life { display: flex; gap: .8rem; align-items: center; max-width: 480px }
 input { flex: 1; accent-color: #f0591a } img { max-width: 100%; display: block }
 button { font: inherit; width: 5rem; border: 1px solid #d5d8de; border-radius: 6px;
          background: white; cursor: pointer } summary { cursor: pointer; color: #767d8a }
</style>
<h1>$title</h1>
<p>At every step: the futures it considered (violet), the one it chose (orange, a dot for each
imagined step), the way it really went (blue), and the goal as the world draws it. Imagined places
are read out of latent states by a linear probe, which is wrong by $error pixels (root mean square,
on lives it was not fitted to).</p>
$chapters
<script>
for (const part of document.querySelectorAll("section")) {
  const frames = JSON.parse(part.querySelector("script").textContent);
  const image = part.querySelector("img"), bar = part.querySelector("input");
  const button = part.querySelector("button");
  let timer = 0;
  const draw = () => { image.src = "data:image/png;base64," + frames[bar.value]; };
  const stop = () => { clearInterval(timer); timer = 0; button.textContent = "Play"; };
  const step = () => { if (+bar.value < frames.length - 1) { bar.value++; draw(); } else stop(); };
  bar.oninput = () => { stop(); draw(); };
  button.onclick = () => {
    if (timer) return stop();
    if (+bar.value == frames.length - 1) bar.value = 0;
    timer = setInterval(step, 110); button.textContent = "Pause";
  };
  draw();
}
</script></html>
""")

CHAPTER = Template("""<section><h2>$title</h2>
<img width="480" alt="the world, what was considered, chosen and lived">
<div class="life"><button>Play</button>
<input type="range" min="0" max="$last" value="0" aria-label="step"></div>
<script type="application/json">$frames</script>
<details open><summary>all at a glance</summary>
<img src="data:image/png;base64,$sheet" alt="key frames, energy over time, the critic's landscape">
</details></section>
""")


def write(path: Path, title: str, chapters: Sequence[Chapter], error: float) -> Path:
    """`error`: of the read-out of imagined places, pixels. Returns `path`."""
    text = "".join(map(_chapter, chapters))
    path.write_text(
        PAGE.substitute(title=html.escape(title), error=f"{error:.0f}", chapters=text),
        encoding="utf-8",
    )
    return path


def _chapter(chapter: Chapter) -> str:
    return CHAPTER.substitute(
        title=html.escape(chapter.title),
        last=len(chapter.frames) - 1,
        frames=json.dumps([_base64(frame) for frame in chapter.frames]),
        sheet=_base64(Image.fromarray(chapter.sheet).quantize(256, dither=Image.Dither.NONE)),
    )


def _base64(image: Image.Image) -> str:
    png = io.BytesIO()
    image.save(png, "PNG", optimize=True)
    return base64.b64encode(png.getvalue()).decode()
