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

from ami_agent.atomic import write_text
from ami_agent.show.charts import COLOURS, ends
from ami_agent.show.landscape import Landscape
from ami_agent.show.paint import colours
from ami_agent.show.scenes import Episode, Moment
from ami_agent.show.views import View

Json: TypeAlias = dict[str, Any]

SIDE, SMALLEST = 400, 64
"""Of a picture in the page, pixels at most and at least."""

ROOM = 900_000
"""Bytes that the pictures of one life may take; where they would take more, they are smaller."""

CLOSE = 1e-4
"""Share of an energy by which what was chosen may differ from itself, computed twice."""

SCRIPTS = ("words.js", "charts.js", "stage.js", "page.js")

NAMES = {
    "plan": "Mode-2: thinks before it acts",
    "react": "Mode-1: reacts, one pass",
    "auto": "Both modes: thinks where it is worth it",
}


class Chapter(NamedTuple):
    """What the page shows of one seed: how it was lived in each mode, and how to look at it."""

    acts: Sequence[Json]
    view: View
    shades: Sequence[Json] = ()  # what can be laid over the world, from below to above


def act(episode: Episode, sheet: np.ndarray) -> Json:
    """All that the page needs of an episode; `sheet`: uint8 [h, w, 3]."""
    life, steps = episode.life, episode.steps.tolist()
    return {
        "mode": life.mode,
        "seed": life.seed,
        "name": NAMES.get(life.mode, f"mode {life.mode}"),
        "verdict": life.verdict,
        "length": len(life.states),
        "every": steps[-1] - steps[-2] if len(steps) > 1 else 1,
        "until": life.until,
        "arrived": life.arrived,
        "reached": life.reached,
        "unit": episode.unit,
        "layers": _layers(episode),
        "terms": [_plain(name) for name in episode.moments[0].terms],
        "colours": list(colours(episode.moments[0].terms).values()),
        "ahead": _numbers(episode.truth.ahead),
        "steps": steps,
        "path": _points(episode.path),
        "panels": _panels([moment.panels for moment in episode.moments]),
        "moments": [
            _moment(moment, float(missed))
            for moment, missed in zip(episode.moments, episode.truth.over_time, strict=True)
        ],
        "sheet": _data(Image.fromarray(sheet), _smallest([Image.fromarray(sheet)])),
    }


def shade(landscape: Landscape, drawn: np.ndarray) -> Json:
    """What the critic says of every place; `drawn`: uint8 [h, w, 4]."""
    low, high = ends(landscape)
    return {"image": _data(Image.fromarray(drawn), ("png", _png)), "colours": COLOURS,
            "low": _number(low), "high": _number(high), "unit": landscape.unit}  # fmt: skip


def _layers(episode: Episode) -> list[str]:
    """What can be drawn over it."""
    imagined = ["chosen", "considered", "came"] if episode.imagines else []
    return ["lived", *imagined, *(["hopes"] if episode.hopes else [])]


def _plain(name: str) -> str:
    """A term's name in plain words."""
    return name.replace("critic_", "critic of ")


def _moment(moment: Moment, missed: float) -> Json:
    ahead = np.array(list(moment.ahead.values())).T  # [H, terms]
    return {
        "considered": [_points(future) for future in moment.considered],
        "compared": len(moment.energies),
        "rivals": _rivals(moment),
        "chosen": _points(moment.chosen),
        "hopes": [_points(hopes) for hopes in moment.hopes],
        "terms": _numbers(moment.terms.values()),
        "ahead": [_numbers(step) for step in ahead],
        "thinking": _numbers(moment.thinking),
        "toGo": _number(moment.to_go),
        "missed": _number(missed),
    }


def _rivals(moment: Moment) -> list[list[float | None]]:
    """What was compared but not chosen, the cheapest first: its number and its energy."""
    energies, chosen = moment.energies, sum(moment.terms.values())
    gaps = np.abs(energies - chosen)
    # a first action that was taken in the place of another is none of those compared
    among = bool((gaps <= CLOSE * (abs(chosen) + 1)).any())
    own = int(np.nanargmin(gaps)) if among else -1
    order = [n for n in np.argsort(energies, kind="stable").tolist() if n != own]
    return [[n, _number(energies[n])] for n in order if np.isfinite(energies[n])]


def _panels(moments: Sequence[Sequence[Any]]) -> list[Json]:
    """One for each panel of the moments; a picture that is seen again is kept once."""
    found = []
    for panels in zip(*moments, strict=True):
        known: dict[bytes, int] = {}
        shown = [known.setdefault(panel.picture.tobytes(), len(known)) for panel in panels]
        kept = [Image.fromarray(panels[shown.index(n)].picture) for n in range(len(known))]
        images, write = _fitting(kept)
        height, width = panels[0].picture.shape[:2]
        found.append(
            {
                "name": panels[0].name,
                "width": width,
                "height": height,
                "overlaid": panels[0].overlaid,
                "images": [_data(image, write) for image in images],
                "shown": shown,
            }
        )
    return found


Write: TypeAlias = tuple[str, Callable[[Image.Image], bytes]]


def _written(image: Image.Image, kind: str, **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def _png(image: Image.Image) -> bytes:
    few = image.quantize(128, dither=Image.Dither.NONE)
    return _written(few, "PNG", optimize=True)


def _webp(image: Image.Image) -> bytes:
    return _written(image, "WEBP", quality=75, method=4)


def _webp_exact(image: Image.Image) -> bytes:
    return _written(image, "WEBP", lossless=True, method=2)


def _jpeg(image: Image.Image) -> bytes:
    return _written(image, "JPEG", quality=82, optimize=True)


WRITERS: Sequence[Write] = [
    ("png", _png),
    ("jpeg", _jpeg),
    *([("webp", _webp_exact), ("webp", _webp)] if features.check("webp") else []),
]


def _smallest(examples: Sequence[Image.Image]) -> Write:
    """The way to write pictures like these that takes the least room."""
    return min(WRITERS, key=lambda writer: sum(len(writer[1](image)) for image in examples))


def _fitting(pictures: Sequence[Image.Image]) -> tuple[list[Image.Image], Write]:
    """Pictures as large as there is room for, and how they are best written."""
    some, side = pictures[:: max(1, len(pictures) // 4)], float(min(SIDE, max(pictures[0].size)))
    name, write = _smallest([_small(picture, side) for picture in some])

    def taken() -> float:
        return sum(len(write(_small(picture, side))) for picture in some) / len(some)

    while side > SMALLEST and taken() * len(pictures) > ROOM:
        side *= 0.85
    return [_small(picture, side) for picture in pictures], (name, write)


def _small(picture: Image.Image, side: float) -> Image.Image:
    image = picture.copy()
    image.thumbnail((round(side), round(side)), Image.Resampling.LANCZOS)
    return image


def _data(image: Image.Image, writer: Write) -> str:
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


def write(path: Path, title: str, about: Sequence[str], chapters: Sequence[Chapter]) -> Path:
    """`about`: paragraphs, those that are not empty are told. Returns `path`."""
    story: Mapping[str, Any] = {
        "chapters": [
            {"name": f"seed {acts[0]['seed']}", "told": view.told, "error": _number(view.error),
             "shades": shades, "acts": acts}
            for acts, view, shades in chapters
        ]
    }  # fmt: skip
    # a script ends at the first </ that it holds, in whatever string
    told = json.dumps(story, allow_nan=False, separators=(",", ":")).replace("</", "<\\/")
    said = "".join(f"<p>{html.escape(part)}</p>" for part in about if part)
    text = Template(_part("page.html")).substitute(
        title=html.escape(title), about=said, style=_part("page.css"), story=told,
        script="".join(map(_part, SCRIPTS)),
    )  # fmt: skip
    write_text(path, text)
    return path


def _part(name: str) -> str:
    return files("ami_agent.show").joinpath(name).read_text(encoding="utf-8")
