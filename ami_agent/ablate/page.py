"""A study as one page: what each part was worth in words, a picture, the figures. Nothing is
fetched from anywhere."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from contextlib import closing
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ami_agent.ablate.study import ALL, LABEL, MODES, Study, each, rows, spectrum
from ami_agent.ablate.verdict import Difference, Measure, interquartile
from ami_agent.atomic import write_bytes, write_text
from ami_agent.build import Config, lessons
from ami_agent.glossary import meaning
from ami_agent.learning import Learning
from ami_agent.lessons import NoLesson

INK = {"plan": "#f0591a", "react": "#5b53c8"}
DOES = {"plan": "plans", "react": "reacts"}


def write(path: Path, study: Study) -> Path:
    """Writes the page, and its picture beside it; returns `path`."""
    picture = plot(study)
    write_bytes(path.with_name("study.png"), picture)
    asked = study.asked.strip().split("\n\n") if study.asked else []
    variants = "".join(_variant(study, name) for name in study.configs)
    failures = "".join(f"<p>{html.escape(one)}</p>" for one in study.failures())
    page = files("ami_agent.ablate").joinpath("page.html").read_text(encoding="utf-8")
    write_text(
        path,
        Template(page).substitute(
            title=html.escape(f"Study: {study.name}"),
            asked="".join(f'<p class="told">{html.escape(part)}</p>' for part in asked),
            about=html.escape(_about(study)),
            base=html.escape(study.base),
            lessons=_lessons(study.configs[study.base]),
            variants=variants + _alike(study) + failures,
            plot=base64.b64encode(picture).decode(),
            alt=html.escape(
                "figures of every variant with intervals: the table below in a picture"
            ),
            pairs=_pairs(study),
            table=_table(*rows(study, ALL)),
        ),
    )
    return path


def _about(study: Study) -> str:
    """What was done, for who never saw the world."""
    config, measure = study.configs[study.base], study.measure
    if measure is None:
        return "No run finished."
    first = next(o.marks for each in study.outcomes.values() for o in each if o.marks)["plan"]
    with closing(config.evaluation.build(1)) as world:
        scene = world.about
    named = f"The world, {config.evaluation.id} {config.evaluation.variant}".rstrip()
    steps = f" of {first['length']['mean']:.3g} steps on the mean" if first.get("length") else ""
    return (
        f"{named}: {scene or 'it says nothing of itself.'} {len(study.configs)} variants of an "
        f"agent, {study.seeds} seeds of each; every seed is trained anew and judged in "
        f"{first['episodes']} episodes{steps}, by "
        f"{measure.key.replace('_', ' ')}: {measure.told}. {_beside(first, measure)}"
    )


def _beside(marks: Mapping[str, Any], measure: Measure) -> str:
    """What the same episodes come to without the agent."""
    who = {"random": "random actions", "oracle": "one who knows the world"}
    found = {said: marks["baselines"].get(name) or {} for name, said in who.items()}
    known = {said: each for said, each in found.items() if each.get(measure.key)}
    reach = [f"{said}, {measure.of(each):.3g}" for said, each in known.items()]
    return f"In the same episodes reach: {'; '.join(reach)}." if reach else ""


def _variant(study: Study, name: str) -> str:
    """One variant: what it is, what it reached, and what that says."""
    reached = f'<p class="told">{html.escape(_reached(study, name))}</p>'
    if name == study.base:
        return f"<section><h3>{html.escape(name)}, the base</h3>{reached}</section>"
    base, config, changes = study.configs[study.base], study.configs[name], study.changes(name)
    differs = "".join(_change(base, config, change) for change in changes)
    worth = "".join(
        _sentence(sentence, study.gap(name, mode).label)
        for mode, sentence in study.worth(name).items()
    )
    together = "<p>All of this at once: what follows is of it together.</p>"
    title = f"<h3>{html.escape(name)}</h3><ul>{differs}</ul>{together if len(changes) > 1 else ''}"
    return f"<section>{title}{reached}{worth}</section>"


def _pairs(study: Study) -> str:
    """Each variant beside each other, in the modes that tell any apart."""
    names, tables = list(study.configs), []
    if study.measure is None or len(names) < 3:
        return ""
    for mode in (mode for mode in MODES if mode not in study.alike):
        gaps = [[study.gap(name, mode, other) for other in names] for name in names]
        body = "".join(
            f"<tr><th>{html.escape(name)}</th>{''.join(map(_gap, row))}</tr>"
            for name, row in zip(names, gaps, strict=True)
        )
        head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
        tables.append(f"<table><tr><th>{LABEL[mode]}</th>{head}</tr>{body}</table>")
    told = "<p>By how much the row is better than the column; real differences stand out.</p>"
    return f"<h2>Beside each other</h2>{told}<div class='wide'>{'<br>'.join(tables)}</div>"


def _gap(gap: Difference) -> str:
    if gap.mean is None or gap.none:
        return "<td></td>"
    kind = ' class="real"' if gap.real else ""
    span = f"[{gap.ci95[0]:.3g}, {gap.ci95[1]:.3g}]" if gap.ci95 else ""
    return f"<td><b{kind}>{gap.mean:+.3g}</b> {span}</td>"


def _reached(study: Study, name: str) -> str:
    if study.measure is None:
        return "failed"
    parts = []
    for mode in MODES:
        marks = list(study.marks(name, mode).values())
        unit = study.measure.unit
        figure = f"{sum(marks) / len(marks):.3g} {unit}" if marks else "nothing"
        seeds = f" (by seed {each(marks)})" if marks else ""
        parts.append(f"{LABEL[mode]}: {figure}{seeds}")
    states = spectrum(study, name).items()
    known = [f"{what} {figure}" for what, figure in states if figure != "-"]
    return "; ".join([*parts, *known])


def _change(base: Config, config: Config, phrase: str) -> str:
    """A setting that differs, and what it means."""
    path = phrase.partition(" is ")[0]
    told = meaning(config, path) or meaning(base, path)
    if path.endswith(".is"):  # of one class in the place of another, what the place is for as well
        told = f"{meaning(base, path.removesuffix('.is'))} {told}"
        phrase = phrase.replace(".is is ", " is ").replace(".Config'", "'")
    return f"<li><code>{html.escape(phrase)}</code> <span>{html.escape(told)}</span></li>"


def _lessons(config: Config) -> str:
    """What is learnt, one after the other, and in how many updates."""
    rows = []
    for name, lesson in lessons(config).items():
        learning = getattr(lesson, "learning", None)
        count = f", {learning.steps} updates" if isinstance(learning, Learning) else ""
        if not isinstance(lesson, NoLesson):
            said = html.escape(meaning(config, name))
            rows.append(f"<li><b>{html.escape(name)}</b>{count}: <span>{said}</span></li>")
    return f"<ul>{''.join(rows)}</ul>"


def _sentence(sentence: str, label: str) -> str:
    kind = ' class="real"' if label == "real" else ""
    return f'<p class="told"><b{kind}>{label}</b> {html.escape(sentence)}</p>'


def _alike(study: Study) -> str:
    if study.measure is None:
        return ""
    untaught = all(
        isinstance(lessons(config)[name], NoLesson)
        for config in study.configs.values()
        for name in ("interact", "retrace", "amortise", "distil")
    )
    why = " Nothing teaches it in this study, so it acts as it was born." if untaught else ""
    return "".join(
        f"<p>{html.escape(sentence)}.{why if mode == 'react' else ''}</p>"
        for mode, sentence in zip(study.alike, study.same(), strict=True)
    )


def _table(columns: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    lines = (
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in body
    )
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


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
            label = f"{LABEL[mode]}, {DOES[mode]}" if name == study.base else None
            axes.plot(found["mean"], place, "o", color=INK[mode], ms=8, label=label)
            axes.plot(marks, [place] * len(marks), "o", color="white", mec=INK[mode], ms=4)
    axes.set_yticks(places, names, parse_math=False)
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
