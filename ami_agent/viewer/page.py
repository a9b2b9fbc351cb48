"""One page for all episodes: it holds the pictures, and the browser draws states over them."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from PIL import Image, features

from ami_agent.storage.files import write_text
from ami_agent.viewer.drawing import CRITIC_COLORS, draw_critic_overlay, term_colors, value_range
from ami_agent.viewer.projectors import CriticMap, ProjectedEpisode, ProjectedStep, Projector
from ami_agent.viewer.record import RecordedStep, SearchTree

Json: TypeAlias = dict[str, Any]

MAX_SIDE, MIN_SIDE = 400, 64  # pixels on the longer side of a picture in the page
MAX_EPISODE_BYTES = 900_000
"""Bytes that the pictures of one episode may take; they are downscaled where they take more."""
SAME_ENERGY_TOLERANCE = 1e-4
"""Relative difference of two energies of the same plan, computed in batches of other sizes."""
SCRIPTS = ("describe.js", "charts.js", "panels.js", "page.js")

MODE_TITLES = {
    "plan": "Mode-2: plans before every action",
    "react": "Mode-1: acts by its policy, without planning",
    "auto": "Both modes: plans only where planning pays",
}


class SeedRecord(NamedTuple):
    """What the page shows of one seed: an episode in each mode, and how states are drawn."""

    mode_records: Sequence[Json]
    projector: Projector
    overlays: Sequence[Json] = ()  # images to lay over the frames, from below to above


def mode_record(episode: ProjectedEpisode, sheet: np.ndarray) -> Json:
    """What the page needs of an episode; `sheet`: uint8 [h, w, 3]."""
    recorded, steps = episode.recorded, episode.steps.tolist()
    terms = recorded.recorded_steps[0].terms
    by_step = zip(episode.projected_steps, episode.prediction_error.by_step, strict=True)
    picture = Image.fromarray(sheet)
    return {
        "mode": recorded.mode,
        "seed": recorded.seed,
        "name": MODE_TITLES.get(recorded.mode, f"mode {recorded.mode}"),
        "summary": recorded.summary,
        "predictionFault": episode.prediction_fault,
        "length": len(recorded.states),
        "interval": steps[-1] - steps[-2] if len(steps) > 1 else 1,
        "endStep": recorded.end_step,
        "successStep": recorded.success_step,
        "successLabel": recorded.success_label,
        "unit": recorded.critic_unit,
        "layers": [
            "past",
            *(["planned", "candidates", "actual"] if episode.imagines else []),
            *(["subgoals"] if episode.has_subgoals else []),
        ],
        "terms": [name.replace("critic_", "critic of ") for name in terms],
        "colors": list(term_colors(terms).values()),
        "errorByHorizon": numbers(episode.prediction_error.by_horizon),
        "steps": steps,
        "path": _points(episode.path),
        "panels": _panels([step.panels for step in episode.projected_steps]),
        "frames": [_frame(step, float(error)) for step, error in by_step],
        "sheet": _data_uri(picture, _smallest_encoding([picture])),
    }


def critic_overlay(critic_map: CriticMap) -> Json:
    """What the page needs of a critic map."""
    low, high = value_range(critic_map)
    image = Image.fromarray(draw_critic_overlay(critic_map))
    return {"image": _data_uri(image, ENCODINGS[0]), "colors": CRITIC_COLORS,
            "low": number(low), "high": number(high), "unit": critic_map.unit}  # fmt: skip


def _frame(step: ProjectedStep, error: float) -> Json:
    recorded = step.recorded
    step_energies = np.array(list(recorded.step_energies.values())).T  # [H, terms]
    return {
        "candidates": [_points(states) for states in step.candidates],
        "numCandidates": len(recorded.candidate_energies),
        "otherCandidates": _other_candidates(recorded),
        "planned": _points(step.planned),
        "subgoals": [_points(plan) for plan in step.upper_plans],
        "terms": numbers(recorded.terms.values()),
        "stepEnergies": [numbers(energies) for energies in step_energies],
        "bestEnergies": numbers(recorded.best_energies),
        "criticValue": number(recorded.critic_value),
        "predictionError": number(error),
        **_search_tree(recorded.search_tree),
    }


def _search_tree(tree: SearchTree | None) -> Json:
    if tree is None:
        return {}
    choices, planned = tree.choices.tolist(), tree.planned.tolist()
    return {"tree": {"choices": choices, "energies": numbers(tree.energies), "planned": planned}}


def _other_candidates(step: RecordedStep) -> list[list[float | None]]:
    """The candidates that were not chosen, by energy: the index and the energy of each."""
    energies, energy_chosen = step.candidate_energies, sum(step.terms.values())
    gaps = np.abs(energies - energy_chosen)
    # the plan may be none of the candidates: an actor may have replaced its first action
    is_candidate = bool((gaps <= SAME_ENERGY_TOLERANCE * (abs(energy_chosen) + 1)).any())
    chosen_index = int(np.nanargmin(gaps)) if is_candidate else -1
    order = [n for n in np.argsort(energies, kind="stable").tolist() if n != chosen_index]
    return [[n, number(energies[n])] for n in order if np.isfinite(energies[n])]


def _panels(steps: Sequence[Sequence[Any]]) -> list[Json]:
    """The panels of all steps; equal pictures are kept once."""
    panels_json = []
    for panels in zip(*steps, strict=True):
        pictures = {panel.picture.tobytes(): panel.picture for panel in panels}
        numbers = {data: number for number, data in enumerate(pictures)}
        images, encoding = _fit_bytes([*map(Image.fromarray, pictures.values())])
        height, width = panels[0].picture.shape[:2]
        panels_json.append({
            "name": panels[0].name, "width": width, "height": height,
            "overlaid": panels[0].overlaid, "axes": panels[0].axis_labels,
            "shown": [numbers[panel.picture.tobytes()] for panel in panels],
            "images": [_data_uri(image, encoding) for image in images],
        })  # fmt: skip
    return panels_json


Encoding: TypeAlias = tuple[str, Callable[[Image.Image], bytes]]


def _encode(image_format: str, image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def _png(image: Image.Image) -> bytes:
    return _encode("PNG", image.quantize(128, dither=Image.Dither.NONE), optimize=True)


ENCODINGS: list[Encoding] = [
    ("png", _png),
    ("jpeg", partial(_encode, "JPEG", quality=82, optimize=True)),
]
if features.check("webp"):
    ENCODINGS += [
        ("webp", partial(_encode, "WEBP", lossless=True, method=2)),
        ("webp", partial(_encode, "WEBP", quality=75, method=4)),
    ]


def _smallest_encoding(examples: Sequence[Image.Image]) -> Encoding:
    """The encoding that takes the fewest bytes for pictures like these."""
    return min(ENCODINGS, key=lambda encoding: sum(len(encoding[1](image)) for image in examples))


def _fit_bytes(pictures: Sequence[Image.Image]) -> tuple[list[Image.Image], Encoding]:
    """The pictures, as large as `MAX_EPISODE_BYTES` allows, and their encoding."""
    samples = pictures[:: max(1, len(pictures) // 4)]
    side = float(min(MAX_SIDE, max(pictures[0].size)))
    name, encode = _smallest_encoding([_downscale(picture, side) for picture in samples])

    def mean_bytes() -> float:
        return sum(len(encode(_downscale(picture, side))) for picture in samples) / len(samples)

    while side > MIN_SIDE and mean_bytes() * len(pictures) > MAX_EPISODE_BYTES:
        side *= 0.85
    return [_downscale(picture, side) for picture in pictures], (name, encode)


def _downscale(picture: Image.Image, side: float) -> Image.Image:
    image = picture.copy()
    image.thumbnail((round(side), round(side)), Image.Resampling.LANCZOS)
    return image


def _data_uri(image: Image.Image, encoding: Encoding) -> str:
    name, encode = encoding
    return f"data:image/{name};base64,{base64.b64encode(encode(image)).decode()}"


def _points(positions: np.ndarray) -> list[float]:
    """`[N, 2]` -> x, y, x, y, ..., to a tenth of a pixel."""
    return [round(float(value), 1) for value in positions.reshape(-1)]


def numbers(values: Any) -> list[float | None]:
    """The numbers as JSON has them."""
    return [number(value) for value in values]


def number(value: float) -> float | None:
    """The number to four digits; None where it is not finite, which JSON can't express."""
    return float(f"{value:.4g}") if np.isfinite(value) else None


def write(
    path: Path, title: str, description: Sequence[str], seed_records: Sequence[SeedRecord]
) -> Path:
    """Writes the page; `description`: its paragraphs, empty ones are left out. Returns `path`."""
    data: Mapping[str, Any] = {
        "seeds": [
            {"name": f"seed {mode_records[0]['seed']}", "description": projector.description,
             "error": number(projector.error), "overlays": overlays, "modes": mode_records}
            for mode_records, projector, overlays in seed_records
        ]
    }  # fmt: skip
    # HTML ends a script at the first </, even within a string
    data_json = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("</", "<\\/")
    paragraphs = "".join(f"<p>{html.escape(part)}</p>" for part in description if part)
    text = Template(read_asset("page.html")).substitute(
        title=html.escape(title), description=paragraphs, data=data_json,
        style=read_asset("page.css"), script="".join(map(read_asset, SCRIPTS)),
    )  # fmt: skip
    write_text(path, text)
    return path


def read_asset(name: str) -> str:
    """A text file beside this module."""
    return files("ami_agent.viewer").joinpath(name).read_text(encoding="utf-8")
