"""A study as one self-contained page: the effect of each variant in sentences, a plot, tables."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from contextlib import closing
from html import escape
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from string import Template
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ami_agent.ablation.stats import Difference, Measure, format_interval, interquartile_mean
from ami_agent.ablation.study import ALL_COLUMNS, MODE_NAMES, MODES, Study, spectrum, table_rows
from ami_agent.cli.command_flags import setting_help
from ami_agent.config import Config
from ami_agent.storage.files import write_bytes, write_text
from ami_agent.training.optim import OptimConfig

COLORS = {"plan": "#f0591a", "react": "#5b53c8"}
MODE_LABELS = {"plan": "planning", "react": "policy"}


def write(path: Path, study: Study) -> Path:
    """Writes the page, and its plot beside it; returns `path`."""
    picture = plot(study)
    write_bytes(path.with_name("study.png"), picture)
    question = study.question.strip().split("\n\n") if study.question else []
    variants = "".join(_variant(study, name) for name in study.configs)
    failures = "".join(f"<p>{escape(failure)}</p>" for failure in study.failures())
    page = files("ami_agent.ablation").joinpath("page.html").read_text(encoding="utf-8")
    write_text(
        path,
        Template(page).substitute(
            title=escape(f"Study: {study.name}"),
            question="".join(f'<p class="statement">{escape(part)}</p>' for part in question),
            description=escape(_description(study)),
            base=escape(study.base),
            stages=_stages(study.configs[study.base]),
            variants=variants + _ties(study) + failures,
            plot=base64.b64encode(picture).decode(),
            alt="metrics of every variant with intervals, as in the table below",
            pairs=_pairs(study),
            table=_table(*table_rows(study, ALL_COLUMNS)),
        ),
    )
    return path


def _description(study: Study) -> str:
    """The environment, and how the variants are trained and evaluated."""
    config, measure = study.configs[study.base], study.measure
    if measure is None or study.metrics is None:
        return "No run finished."
    metrics = study.metrics["plan"]
    with closing(config.eval_env.build(1)) as env:
        env_description = env.description or "it has no description."
    env_name = f"{config.eval_env.id} {config.eval_env.variant}".rstrip()
    length = metrics.get("length")
    steps = f" of {length['mean']:.3g} steps on average" if length else ""
    return (
        f"The environment, {env_name}: {env_description} The study has {len(study.configs)} "
        f"variants of an agent with {study.seeds} seeds each. Every seed is trained from scratch "
        f"and evaluated in {metrics['episodes']} episodes{steps}, by "
        f"{measure.key.replace('_', ' ')}: {measure.description}. {_baselines(metrics, measure)}"
    )


def _baselines(metrics: Mapping[str, Any], measure: Measure) -> str:
    """What random actions and the oracle reach in the same episodes."""
    labels = {"random": "random actions", "oracle": "the oracle, which knows the true state"}
    parts = [
        f"{label}: {measure.value(metrics['baselines'][name]):.3g}"
        for name, label in labels.items()
        if (metrics["baselines"].get(name) or {}).get(measure.key)
    ]
    return f"Baselines in the same episodes: {'; '.join(parts)}." if parts else ""


def _variant(study: Study, name: str) -> str:
    """One variant: its settings, its results, and how it differs from the base."""
    performance = f'<p class="statement">{escape(_performance(study, name))}</p>'
    if name == study.base:
        return f"<section><h3>{escape(name)}, the base</h3>{performance}</section>"
    base, config, changes = study.configs[study.base], study.configs[name], study.changes(name)
    items = "".join(_change(base, config, change) for change in changes)
    sentences = ""
    for mode, sentence in study.effects(name).items():
        difference = study.difference(name, mode)
        label = _highlight(difference.label, difference)
        sentences += f'<p class="statement">{label} {escape(sentence)}</p>'
    note = "<p>These settings are changed together.</p>"
    title = f"<h3>{escape(name)}</h3><ul>{items}</ul>{note if len(changes) > 1 else ''}"
    return f"<section>{title}{performance}{sentences}</section>"


def _pairs(study: Study) -> str:
    """Differences between all pairs of variants, in the modes in which any differ."""
    names, tables = list(study.configs), []
    if study.measure is None or len(names) < 3:
        return ""
    for mode in (mode for mode in MODES if mode not in study.tied_modes):
        body = ""
        for name in names:
            body += f"<tr><th>{escape(name)}</th>"
            for difference in (study.difference(name, mode, other) for other in names):
                cell = ""
                if difference.mean is not None and not difference.is_zero:
                    mean = _highlight(f"{difference.mean:+.3g}", difference)
                    cell = f"{mean} {format_interval(difference.ci95)}"
                body += f"<td>{cell}</td>"
            body += "</tr>"
        head = "".join(f"<th>{escape(name)}</th>" for name in names)
        tables.append(f"<table><tr><th>{MODE_NAMES[mode]}</th>{head}</tr>{body}</table>")
    note = "<p>The row's result minus the column's; significant differences are highlighted.</p>"
    return f"<h2>Pairwise differences</h2>{note}<div class='wide'>{'<br>'.join(tables)}</div>"


def _highlight(text: str, difference: Difference) -> str:
    css_class = ' class="significant"' if difference.significant else ""
    return f"<b{css_class}>{text}</b>"


def _performance(study: Study, name: str) -> str:
    if study.measure is None:
        return "failed"
    parts = []
    for mode, mode_name in MODE_NAMES.items():
        text, values = "no result", study.values(name, mode)
        if values:
            by_seed = " ".join(f"{value:.3g}" for value in values)
            text = f"{fmean(values):.3g} {study.measure.unit} (by seed {by_seed})"
        parts.append(f"{mode_name}: {text}")
    states = [f"{label} {value}" for label, value in spectrum(study, name).items() if value != "-"]
    return "; ".join([*parts, *states])


def _change(base: Config, config: Config, phrase: str) -> str:
    """A setting that differs, and its help text."""
    path = phrase.partition(" is ")[0]
    description = setting_help(config, path) or setting_help(base, path)
    if path.endswith("._type"):  # another class: the help of the field, then that of the class
        description = f"{setting_help(base, path.removesuffix('._type'))} {description}"
        phrase = phrase.replace("._type is ", " is ").replace("Config'", "'")
    return f"<li><code>{escape(phrase)}</code> <span>{escape(description)}</span></li>"


def _stages(config: Config) -> str:
    """The training stages in order, with their updates."""
    items = []
    for name, stage in config.stages.items():
        optim = getattr(stage, "optim", None)
        count = f", {optim.steps} updates" if isinstance(optim, OptimConfig) else ""
        description = escape(setting_help(config, f"stages.{name}"))
        items.append(f"<li><b>{escape(name)}</b>{count}: <span>{description}</span></li>")
    return f"<ul>{''.join(items)}</ul>"


def _ties(study: Study) -> str:
    if study.measure is None:
        return ""
    policy_untrained = all(
        name not in config.stages
        for config in study.configs.values()
        for name in ("actor_critic", "goal_bc", "amortize_policy", "distill_policy")
    )
    reason = " No stage of this study trains the policy." if policy_untrained else ""
    return "".join(
        f"<p>{escape(sentence)}.{reason if mode == 'react' else ''}</p>"
        for mode, sentence in zip(study.tied_modes, study.ties(), strict=True)
    )


def _table(columns: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = ("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in body)
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def plot(study: Study) -> bytes:
    """The result of every variant with its interval and its seeds, as PNG."""
    names = list(study.configs)
    figure = Figure(figsize=(8.5, 1.2 + 0.55 * len(names)), dpi=150, layout="constrained")
    axes = figure.subplots()
    rows = np.arange(len(names))[::-1]
    for index, mode in enumerate(MODES if study.measure else ()):
        for y, name in zip(rows + 0.13 - 0.26 * index, names, strict=True):
            values = study.values(name, mode)
            estimate = interquartile_mean(values)
            if estimate["mean"] is None:
                continue
            low, high = estimate["ci95"] or (estimate["mean"], estimate["mean"])
            axes.plot([low, high], [y, y], color=COLORS[mode], lw=2.5, solid_capstyle="round")
            label = f"{MODE_NAMES[mode]}, {MODE_LABELS[mode]}" if name == study.base else None
            axes.plot(estimate["mean"], y, "o", color=COLORS[mode], ms=8, label=label)
            axes.plot(values, [y] * len(values), "o", color="white", mec=COLORS[mode], ms=4)
    axes.set_yticks(rows, names, parse_math=False)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(axis="x", color="#e6e8ec")
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    if study.measure:
        axes.set_xlabel(study.measure.unit)
    if axes.get_legend_handles_labels()[0]:
        above = (0.5, 1 + 0.35 / len(names))
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=above, ncols=2)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()
