"""Pictures of worlds as they are, of any world that renders; and none of one that doesn't."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import closing
from typing import Any, Protocol, TypeAlias

import numpy as np
from gymnasium.error import DependencyNotInstalled
from PIL import Image

from ami_agent.graphics import choose_gl_backend, gl_hint
from ami_agent.guard import Failed
from ami_agent.life import World, WorldConfig
from modules.types import UnusableInput

Pictures: TypeAlias = tuple[np.ndarray, ...]
"""What a world shows of itself at one moment: one picture `[h, w, 3]` uint8, or none."""

WHOLE = 1 << 20
"""A side that no picture has."""


class Camera(Protocol):
    """Takes pictures of worlds that were made with its options."""

    options: Mapping[str, Any]

    def __call__(self, world: World) -> list[Pictures]: ...


class Dark:
    """Nothing can be seen."""

    options: Mapping[str, Any] = {}

    def __call__(self, world: World) -> list[Pictures]:
        return [() for _ in range(world.count)]


class Render:
    """What a world's `render` gives, made smaller where a side is longer than `side` pixels."""

    options: Mapping[str, Any] = {"render_mode": "rgb_array"}

    def __init__(self, side: int = WHOLE) -> None:
        self.side = side

    def __call__(self, world: World) -> list[Pictures]:
        pictures = world.envs.render() or ()
        if fault := _fault(pictures):
            raise Failed(f"the world can no longer be drawn: {fault}")
        return [(self._small(np.asarray(picture)),) for picture in pictures]

    def _small(self, picture: np.ndarray) -> np.ndarray:
        picture = picture[..., :3]
        longest = max(picture.shape[:2])
        if longest <= self.side:
            return picture.copy()  # the environment may draw the next one into the same array
        height, width = (max(1, round(n * self.side / longest)) for n in picture.shape[:2])
        return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))


def why_dark(config: WorldConfig) -> str:
    """Why this world can't be seen, in one line; empty where it can."""
    choose_gl_backend()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Gymnasium's, of what is then told in our line
            with closing(config.build(1, **Render().options)) as world:
                world.reset(0)
                return _fault(world.inner.render())
    except NotImplementedError:
        return "it has no render()"
    except UnusableInput as error:
        return _blind(str(error))
    except Exception as error:  # a stranger's code may raise anything
        return _line(f"{_told(error)}{gl_hint(error)}")


def _fault(pictures: Any) -> str:
    if not pictures or any(picture is None for picture in pictures):
        return "its render() gives nothing in the mode rgb_array"
    for picture in map(np.asarray, pictures):
        right = picture.ndim == 3 and picture.shape[2] in (3, 4) and picture.dtype == np.uint8
        if not right or not picture.size:
            told = f"{picture.dtype} {picture.shape}"
            return f"its render() gives {told}; pictures are uint8 (h, w, 3)"
    return ""


def _blind(error: str) -> str:
    """A world that is made without `render_mode` lives, but shows nothing."""
    return "it takes no render_mode" if "render_mode" in error else _line(error)


def _told(error: Exception) -> str:
    """What is missing says so by itself, and what to install."""
    missing = isinstance(error, DependencyNotInstalled)
    return str(error) if missing else f"{type(error).__name__}: {error}"


def _line(text: str) -> str:
    return " ".join(text.split())
