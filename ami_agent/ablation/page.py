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

from ami_agent.ablation.stats import Difference, Measure, interquartile_mean
from ami_agent.ablation.study import (
    ALL_COLUMNS,
    MODE_NAMES,
    MODES,
    Study,
    format_by_seed,
    spectrum,
    table_rows,
)
from ami_agent.cli.setting_help import setting_help
from ami_agent.config import Config
from ami_agent.storage.atomic import write_bytes, write_text
from ami_agent.training import NoStage
from ami_agent.training.optim import OptimConfig

COLORS = {"plan": "#f0591a", "react": "#5b53c8"}
MODE_VERBS = {"plan": "plans", "react": "reacts"}


def write(path: Path, study: Study) -> Path:
    """Writes the page, and its picture beside it; returns `path`."""
    picture = plot(study)
    write_bytes(path.with_name("study.png"), picture)
    question = study.question.strip().split("\n\n") if study.question else []
    variants = "".join(_variant(study, name) for name in study.configs)
    failures = "".join(f"<p>{html.escape(one)}</p>" for one in study.failures())
    page = files("ami_agent.ablation").joinpath("page.html").read_text(encoding="utf-8")
    write_text(
        path,
        Template(page).substitute(
            title=html.escape(f"Study: {study.name}"),
            question="".join(f'<p class="statement">{html.escape(part)}</p>' for part in question),
            description=html.escape(_description(study)),
            base=html.escape(study.base),
            stages=_stages(study.configs[study.base]),
            variants=variants + _ties(study) + failures,
            plot=base64.b64encode(picture).decode(),
            alt=html.escape(
                "figures of every variant with intervals: the table below in a picture"
            ),
            pairs=_pairs(study),
            table=_table(*table_rows(study, ALL_COLUMNS)),
        ),
    )
    return path


def _description(study: Study) -> str:
    """What was done, for who never saw the world."""
    config, measure = study.configs[study.base], study.measure
    if measure is None:
        return "No run finished."
    metrics = next(o.metrics for results in study.results.values() for o in results if o.metrics)[
        "plan"
    ]
    with closing(config.eval_env.build(1)) as env:
        env_description = env.description
    env_name = f"The world, {config.eval_env.id} {config.eval_env.variant}".rstrip()
    steps = (
        f" of {metrics['length']['mean']:.3g} steps on the mean" if metrics.get("length") else ""
    )
    return (
        f"{env_name}: {env_description or 'it says nothing of itself.'} {len(study.configs)} variants of an "
        f"agent, {study.seeds} seeds of each; every seed is trained anew and judged in "
        f"{metrics['episodes']} episodes{steps}, by "
        f"{measure.key.replace('_', ' ')}: {measure.description}. {_baselines(metrics, measure)}"
    )


def _baselines(metrics: Mapping[str, Any], measure: Measure) -> str:
    """What the same episodes come to without the agent."""
    descriptions = {"random": "random actions", "oracle": "one who knows the world"}
    baselines = {
        label: metrics["baselines"].get(name) or {} for name, label in descriptions.items()
    }
    reported = {label: metrics for label, metrics in baselines.items() if metrics.get(measure.key)}
    parts = [f"{label}, {measure.value(metrics):.3g}" for label, metrics in reported.items()]
    return f"In the same episodes reach: {'; '.join(parts)}." if parts else ""


def _variant(study: Study, name: str) -> str:
    """One variant: what it is, what it reached, and what that says."""
    performance = f'<p class="statement">{html.escape(_performance(study, name))}</p>'
    if name == study.base:
        return f"<section><h3>{html.escape(name)}, the base</h3>{performance}</section>"
    base, config, changes = study.configs[study.base], study.configs[name], study.changes(name)
    items = "".join(_change(base, config, change) for change in changes)
    sentences = "".join(
        _sentence(sentence, study.difference(name, mode).label)
        for mode, sentence in study.effects(name).items()
    )
    note = "<p>All of this at once: what follows is of it together.</p>"
    title = f"<h3>{html.escape(name)}</h3><ul>{items}</ul>{note if len(changes) > 1 else ''}"
    return f"<section>{title}{performance}{sentences}</section>"


def _pairs(study: Study) -> str:
    """Each variant beside each other, in the modes that tell any apart."""
    names, tables = list(study.configs), []
    if study.measure is None or len(names) < 3:
        return ""
    for mode in (mode for mode in MODES if mode not in study.tied_modes):
        differences = [[study.difference(name, mode, other) for other in names] for name in names]
        body = "".join(
            f"<tr><th>{html.escape(name)}</th>{''.join(map(_difference_cell, row))}</tr>"
            for name, row in zip(names, differences, strict=True)
        )
        head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
        tables.append(f"<table><tr><th>{MODE_NAMES[mode]}</th>{head}</tr>{body}</table>")
    explanation = (
        "<p>By how much the row is better than the column; real differences stand out.</p>"
    )
    return f"<h2>Beside each other</h2>{explanation}<div class='wide'>{'<br>'.join(tables)}</div>"


def _difference_cell(difference: Difference) -> str:
    if difference.mean is None or difference.is_zero:
        return "<td></td>"
    css_class = ' class="significant"' if difference.significant else ""
    interval = f"[{difference.ci95[0]:.3g}, {difference.ci95[1]:.3g}]" if difference.ci95 else ""
    return f"<td><b{css_class}>{difference.mean:+.3g}</b> {interval}</td>"


def _performance(study: Study, name: str) -> str:
    if study.measure is None:
        return "failed"
    parts = []
    for mode in MODES:
        values = list(study.values_by_seed(name, mode).values())
        unit = study.measure.unit
        format_number = f"{sum(values) / len(values):.3g} {unit}" if values else "nothing"
        seeds = f" (by seed {format_by_seed(values)})" if values else ""
        parts.append(f"{MODE_NAMES[mode]}: {format_number}{seeds}")
    states = spectrum(study, name).items()
    known = [f"{what} {format_number}" for what, format_number in states if format_number != "-"]
    return "; ".join([*parts, *known])


def _change(base: Config, config: Config, phrase: str) -> str:
    """A setting that differs, and what it means."""
    path = phrase.partition(" is ")[0]
    description = setting_help(config, path) or setting_help(base, path)
    if path.endswith(
        "._type"
    ):  # of one class in the place of another, what the place is for as well
        description = f"{setting_help(base, path.removesuffix('._type'))} {description}"
        phrase = phrase.replace("._type is ", " is ").replace("Config'", "'")
    return f"<li><code>{html.escape(phrase)}</code> <span>{html.escape(description)}</span></li>"


def _stages(config: Config) -> str:
    """What is learnt, one after the other, and in how many updates."""
    table_rows = []
    for name, stage in config.stages.items():
        optim = getattr(stage, "optim", None)
        count = f", {optim.steps} updates" if isinstance(optim, OptimConfig) else ""
        if not isinstance(stage, NoStage):
            description = html.escape(setting_help(config, f"stages.{name}"))
            table_rows.append(
                f"<li><b>{html.escape(name)}</b>{count}: <span>{description}</span></li>"
            )
    return f"<ul>{''.join(table_rows)}</ul>"


def _sentence(sentence: str, label: str) -> str:
    css_class = ' class="significant"' if label == "real" else ""
    return f'<p class="statement"><b{css_class}>{label}</b> {html.escape(sentence)}</p>'


def _ties(study: Study) -> str:
    if study.measure is None:
        return ""
    policy_untrained = all(
        name not in config.stages
        for config in study.configs.values()
        for name in ("actor_critic", "goal_bc", "amortize_policy", "distill_policy")
    )
    reason = (
        " Nothing teaches it in this study, so it acts as it was born." if policy_untrained else ""
    )
    return "".join(
        f"<p>{html.escape(sentence)}.{reason if mode == 'react' else ''}</p>"
        for mode, sentence in zip(study.tied_modes, study.ties(), strict=True)
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
    format_number = Figure(figsize=(8.5, 1.2 + 0.55 * len(names)), dpi=150, layout="constrained")
    axes = format_number.subplots()
    places = np.arange(len(names))[::-1]
    measure = study.measure
    for index, mode in enumerate(MODES if measure else ()):
        for place, name in zip(places + 0.13 - 0.26 * index, names, strict=True):
            values = list(study.values_by_seed(name, mode).values())
            estimate = interquartile_mean(values)
            if estimate["mean"] is None:
                continue
            low, high = estimate["ci95"] or (estimate["mean"], estimate["mean"])
            axes.plot(
                [low, high], [place, place], color=COLORS[mode], lw=2.5, solid_capstyle="round"
            )
            label = f"{MODE_NAMES[mode]}, {MODE_VERBS[mode]}" if name == study.base else None
            axes.plot(estimate["mean"], place, "o", color=COLORS[mode], ms=8, label=label)
            axes.plot(values, [place] * len(values), "o", color="white", mec=COLORS[mode], ms=4)
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
    format_number.savefig(png, format="png")
    return png.getvalue()
