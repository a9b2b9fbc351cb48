"""One page for all episodes: pictures inside, states drawn over them by the browser, nothing
fetched from anywhere."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from PIL import Image, features

from ami_agent.storage.atomic import write_text
from ami_agent.viewer.charts import CRITIC_COLORS, value_range
from ami_agent.viewer.colors import term_colors
from ami_agent.viewer.critic_map import CriticMap
from ami_agent.viewer.project import ProjectedEpisode, ProjectedStep
from ami_agent.viewer.projectors import Projector

Json: TypeAlias = dict[str, Any]

MAX_SIDE, MIN_SIDE = 400, 64
"""Of a picture in the page, pixels at most and at least."""

MAX_EPISODE_BYTES = 900_000
"""Bytes that the pictures of one life may take; where they would take more, they are smaller."""

SAME_ENERGY_TOLERANCE = 1e-4
"""Share of an energy by which what was chosen may differ from itself, computed twice."""

SCRIPTS = ("words.js", "charts.js", "stage.js", "page.js")

MODE_TITLES = {
    "plan": "Mode-2: thinks before it acts",
    "react": "Mode-1: reacts, one pass",
    "auto": "Both modes: thinks where it is worth it",
}


class SeedRecord(NamedTuple):
    """What the page shows of one seed: how it was lived in each mode, and how to look at it."""

    mode_records: Sequence[Json]
    projector: Projector
    overlays: Sequence[Json] = ()  # what can be laid over the world, from below to above


def mode_record(episode: ProjectedEpisode, sheet: np.ndarray) -> Json:
    """All that the page needs of an episode; `sheet`: uint8 [h, w, 3]."""
    recorded, steps = episode.recorded, episode.steps.tolist()
    return {
        "mode": recorded.mode,
        "seed": recorded.seed,
        "name": MODE_TITLES.get(recorded.mode, f"mode {recorded.mode}"),
        "summary": recorded.summary,
        "length": len(recorded.states),
        "interval": steps[-1] - steps[-2] if len(steps) > 1 else 1,
        "endStep": recorded.end_step,
        "successStep": recorded.success_step,
        "successLabel": recorded.success_label,
        "unit": episode.unit,
        "layers": _layers(episode),
        "terms": [_term_title(name) for name in episode.projected_steps[0].terms],
        "colors": list(term_colors(episode.projected_steps[0].terms).values()),
        "errorByHorizon": _numbers(episode.prediction_error.by_horizon),
        "steps": steps,
        "path": _points(episode.path),
        "panels": _panels([projected_step.panels for projected_step in episode.projected_steps]),
        "frames": [
            _frame(projected_step, float(error))
            for projected_step, error in zip(
                episode.projected_steps, episode.prediction_error.by_step, strict=True
            )
        ],
        "sheet": _data_uri(Image.fromarray(sheet), _smallest_encoding([Image.fromarray(sheet)])),
    }


def critic_overlay(critic_map: CriticMap, drawn: np.ndarray) -> Json:
    """What the critic says of every place; `drawn`: uint8 [h, w, 4]."""
    low, high = value_range(critic_map)
    return {"image": _data_uri(Image.fromarray(drawn), ("png", _png)), "colors": CRITIC_COLORS,
            "low": _number(low), "high": _number(high), "unit": critic_map.unit}  # fmt: skip


def _layers(episode: ProjectedEpisode) -> list[str]:
    """What can be drawn over it."""
    imagined_layers = ["planned", "candidates", "actual"] if episode.imagines else []
    return ["past", *imagined_layers, *(["subgoals"] if episode.has_subgoals else [])]


def _term_title(name: str) -> str:
    """A term's name in plain words."""
    return name.replace("critic_", "critic of ")


def _frame(projected_step: ProjectedStep, error: float) -> Json:
    ahead = np.array(list(projected_step.step_energies.values())).T  # [H, terms]
    return {
        "candidates": [_points(future) for future in projected_step.candidates],
        "numCandidates": len(projected_step.candidate_energies),
        "otherCandidates": _other_candidates(projected_step),
        "planned": _points(projected_step.planned),
        "subgoals": [_points(plan) for plan in projected_step.upper_plans],
        "terms": _numbers(projected_step.terms.values()),
        "stepEnergies": [_numbers(step) for step in ahead],
        "bestEnergies": _numbers(projected_step.best_energies),
        "criticValue": _number(projected_step.critic_value),
        "predictionError": _number(error),
    }


def _other_candidates(projected_step: ProjectedStep) -> list[list[float | None]]:
    """What was compared but not chosen, the cheapest first: its number and its energy."""
    energies, energy_chosen = projected_step.candidate_energies, sum(projected_step.terms.values())
    gaps = np.abs(energies - energy_chosen)
    # a first action that was taken in the place of another is none of those compared
    is_candidate = bool((gaps <= SAME_ENERGY_TOLERANCE * (abs(energy_chosen) + 1)).any())
    chosen_index = int(np.nanargmin(gaps)) if is_candidate else -1
    order = [n for n in np.argsort(energies, kind="stable").tolist() if n != chosen_index]
    return [[n, _number(energies[n])] for n in order if np.isfinite(energies[n])]


def _panels(steps: Sequence[Sequence[Any]]) -> list[Json]:
    """One for each panel of the moments; a picture that is seen again is kept once."""
    panels_json = []
    for panels in zip(*steps, strict=True):
        index_by_picture: dict[bytes, int] = {}
        indices = [
            index_by_picture.setdefault(panel.picture.tobytes(), len(index_by_picture))
            for panel in panels
        ]
        pictures = [
            Image.fromarray(panels[indices.index(n)].picture) for n in range(len(index_by_picture))
        ]
        images, encoding = _fit_bytes(pictures)
        height, width = panels[0].picture.shape[:2]
        panels_json.append(
            {
                "name": panels[0].name,
                "width": width,
                "height": height,
                "overlaid": panels[0].overlaid,
                "images": [_data_uri(image, encoding) for image in images],
                "shown": indices,
            }
        )
    return panels_json


Encoding: TypeAlias = tuple[str, Callable[[Image.Image], bytes]]


def _encode(image: Image.Image, image_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def _png(image: Image.Image) -> bytes:
    few = image.quantize(128, dither=Image.Dither.NONE)
    return _encode(few, "PNG", optimize=True)


def _webp(image: Image.Image) -> bytes:
    return _encode(image, "WEBP", quality=75, method=4)


def _webp_exact(image: Image.Image) -> bytes:
    return _encode(image, "WEBP", lossless=True, method=2)


def _jpeg(image: Image.Image) -> bytes:
    return _encode(image, "JPEG", quality=82, optimize=True)


ENCODINGS: Sequence[Encoding] = [
    ("png", _png),
    ("jpeg", _jpeg),
    *([("webp", _webp_exact), ("webp", _webp)] if features.check("webp") else []),
]


def _smallest_encoding(examples: Sequence[Image.Image]) -> Encoding:
    """The way to write pictures like these that takes the least room."""
    return min(ENCODINGS, key=lambda writer: sum(len(writer[1](image)) for image in examples))


def _fit_bytes(pictures: Sequence[Image.Image]) -> tuple[list[Image.Image], Encoding]:
    """Pictures as large as there is room for, and how they are best written."""
    samples, side = (
        pictures[:: max(1, len(pictures) // 4)],
        float(min(MAX_SIDE, max(pictures[0].size))),
    )
    name, write = _smallest_encoding([_downscale(picture, side) for picture in samples])

    def mean_bytes() -> float:
        return sum(len(write(_downscale(picture, side))) for picture in samples) / len(samples)

    while side > MIN_SIDE and mean_bytes() * len(pictures) > MAX_EPISODE_BYTES:
        side *= 0.85
    return [_downscale(picture, side) for picture in pictures], (name, write)


def _downscale(picture: Image.Image, side: float) -> Image.Image:
    image = picture.copy()
    image.thumbnail((round(side), round(side)), Image.Resampling.LANCZOS)
    return image


def _data_uri(image: Image.Image, writer: Encoding) -> str:
    kind, write = writer
    return f"data:image/{kind};base64,{base64.b64encode(write(image)).decode()}"


def _points(places: np.ndarray) -> list[float]:
    """`[N, 2]` -> x, y, x, y, ..., to a tenth of a pixel."""
    return [round(float(number), 1) for number in places.reshape(-1)]


def _numbers(numbers: Any) -> list[float | None]:
    return [_number(number) for number in numbers]


def _number(number: float) -> float | None:
    """Four digits; None for what is not finite, which JSON can't say."""
    return float(f"{number:.4g}") if np.isfinite(number) else None


def write(
    path: Path, title: str, description: Sequence[str], seed_records: Sequence[SeedRecord]
) -> Path:
    """`about`: paragraphs, those that are not empty are told. Returns `path`."""
    data: Mapping[str, Any] = {
        "seeds": [
            {"name": f"seed {mode_records[0]['seed']}", "description": projector.description, "error": _number(projector.error),
             "overlays": overlays, "modes": mode_records}
            for mode_records, projector, overlays in seed_records
        ]
    }  # fmt: skip
    # a script ends at the first </ that it holds, in whatever string
    data_json = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("</", "<\\/")
    paragraphs = "".join(f"<p>{html.escape(part)}</p>" for part in description if part)
    text = Template(_asset("page.html")).substitute(
        title=html.escape(title), description=paragraphs, style=_asset("page.css"), data=data_json,
        script="".join(map(_asset, SCRIPTS)),
    )  # fmt: skip
    write_text(path, text)
    return path


def _asset(name: str) -> str:
    return files("ami_agent.viewer").joinpath(name).read_text(encoding="utf-8")
