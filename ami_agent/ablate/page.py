"""A study as one page: what each part was worth in words, a picture, the figures. Nothing is
fetched from anywhere."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from string import Template

import numpy as np
from matplotlib.figure import Figure

from ami_agent.ablate.study import MODES, SHOWN, Study, rows
from ami_agent.ablate.verdict import interquartile

INK = {"plan": "#f0591a", "react": "#5b53c8"}
LABEL = {"plan": "Mode-2, plans", "react": "Mode-1, reacts"}

PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>$title</title>
<meta name="viewport" content="width=device-width">
<style>
 :root { color-scheme: light dark; --ink: #22262e; --faint: #767d8a; --line: #e6e8ec }
 @media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6ea; --faint: #989fac; --line: #3a3f48 } body { background: #1b1e23 }
  img { background: white; border-radius: 8px } }
 body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); max-width: 1080px;
        margin: 2.5rem auto; padding: 0 1.5rem }
 h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem }
 p, li.chance, summary { color: var(--faint) } li { margin: .3rem 0 } img { max-width: 100% }
 .wide { overflow-x: auto } table { border-collapse: collapse; font-size: .85rem }
 th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line);
          white-space: nowrap } code { font-size: .85rem }
</style>
<h1>$title</h1>
<p>$about</p>
<h2>What each variant is worth</h2>
<ul>$sentences</ul>
<p>In grey: what chance alone may do.</p>
<h2>At a glance</h2>
<img src="data:image/png;base64,$plot" alt="$alt">
<h2>Figures</h2>
<div class="wide">$table</div>
<p>Interquartile means over seeds with 95 % bootstrap intervals; differences are paired by seed,
with Student's interval; the chance to be better is that of one run beside one of the base, ties
counting half (Agarwal et al. 2021). Every variant had the same seeds, lives, updates and judging
episodes. Of three seeds the interquartile mean is the mean, and the bootstrap interval goes from
the worst to the best: it shows the spread. Whether a difference is real is told by Student's
interval, which is wide where seeds are few, even where all of them lost.</p>
<h2>What differs</h2>
$changes
</html>
""")


def write(path: Path, study: Study) -> Path:
    """Writes the page, and its picture beside it; returns `path`."""
    picture = plot(study)
    path.with_name("study.png").write_bytes(picture)
    first = next((o.marks for each in study.outcomes.values() for o in each if o.marks), None)
    episodes = first["plan"]["episodes"] if first else 0
    world, measure = study.configs[study.base].evaluation, study.measure
    about = (
        f"{len(study.configs)} variants of an agent in {world.id} {world.variant}".rstrip() + ", "
        f"{study.seeds} seeds, {episodes} judging episodes a run. The base is {study.base}. Mode-2 "
        "plans at every step, Mode-1 reacts as its policy has learnt to."
        + (f" Judged by {measure.key.replace('_', ' ')}: {measure.told}." if measure else "")
    )
    path.write_text(
        PAGE.substitute(
            title=html.escape(f"Study: {study.name}"),
            about=html.escape(about),
            sentences="".join(_item(sentence) for sentence in study.sentences()),
            plot=base64.b64encode(picture).decode(),
            alt=html.escape(
                "figures of every variant with intervals: the table below in a picture"
            ),
            table=_table(*rows(study, (*SHOWN, "by seed", "better than the base", "seconds"))),
            changes="".join(_changes(study, name) for name in list(study.configs)[1:]),
        ),
        encoding="utf-8",
    )
    return path


def _item(sentence: str) -> str:
    kind = ' class="chance"' if "chance may do" in sentence else ""
    return f"<li{kind}>{html.escape(sentence)}</li>"


def _table(columns: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    lines = (
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in body
    )
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _changes(study: Study, name: str) -> str:
    said = "".join(f"<li><code>{html.escape(one)}</code></li>" for one in study.changes(name))
    return f"<details><summary>{html.escape(name)}</summary><ul>{said}</ul></details>"


def plot(study: Study) -> bytes:
    """Every variant's figure with its interval and its seeds; PNG."""
    names = list(study.configs)
    figure = Figure(figsize=(8.5, 1.2 + 0.55 * len(names)), dpi=150, layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(names))[::-1]
    measure = study.measure
    for index, mode in enumerate(MODES if measure else ()):
        for place, name in zip(places + 0.13 - 0.26 * index, names, strict=True):
            marks = list(study.marks(name, mode).values())
            found = interquartile(marks)
            if found["mean"] is None:
                continue
            low, high = found["ci95"] or (found["mean"], found["mean"])
            axes.plot([low, high], [place, place], color=INK[mode], lw=2.5, solid_capstyle="round")
            axes.plot(marks, [place] * len(marks), "o", color=INK[mode], ms=3.5, alpha=0.45, mew=0)
            label = LABEL[mode] if name == study.base else None
            axes.plot(found["mean"], place, "o", color=INK[mode], ms=7, label=label)
    axes.set_yticks(places, names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(axis="x", color="#e6e8ec")
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    if measure:
        axes.set_xlabel(measure.unit)
    if axes.get_legend_handles_labels()[0]:
        above = (0.5, 1 + 0.35 / len(names))
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=above, ncols=2)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()
