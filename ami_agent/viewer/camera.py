"""Frames of any environment that renders, and none of one that doesn't."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import closing
from typing import Any, Protocol, TypeAlias

import numpy as np
from gymnasium.error import DependencyNotInstalled
from PIL import Image

from ami_agent.adapters.env import EnvAdapter, EnvConfig
from ami_agent.adapters.fault_tolerance import EnvError, gl_hint
from ami_agent.adapters.imports import choose_gl_backend
from modules.types import ConfigError

Pictures: TypeAlias = tuple[np.ndarray, ...]
"""The frame of one environment at one step, `[h, w, 3]` uint8, or nothing."""

NO_LIMIT = 1 << 20
"""Pixels; larger than the side of any frame."""


class Camera(Protocol):
    """Renders environments that were made with its options."""

    options: Mapping[str, Any]

    def __call__(self, env: EnvAdapter) -> list[Pictures]: ...


class NoCamera:
    """Renders nothing."""

    options: Mapping[str, Any] = {}

    def __call__(self, env: EnvAdapter) -> list[Pictures]:
        return [() for _ in range(env.num_envs)]


class RenderCamera:
    """What the environment's `render` gives, downscaled where a side is longer than `side`
    pixels."""

    options: Mapping[str, Any] = {"render_mode": "rgb_array"}

    def __init__(self, side: int = NO_LIMIT) -> None:
        self.side = side

    def __call__(self, env: EnvAdapter) -> list[Pictures]:
        pictures = env.vector_env.render() or ()
        if fault := _render_fault(pictures):
            raise EnvError(f"the environment can no longer be rendered: {fault}")
        return [(self._downscale(np.asarray(picture)),) for picture in pictures]

    def _downscale(self, picture: np.ndarray) -> np.ndarray:
        picture = picture[..., :3]
        longest = max(picture.shape[:2])
        if longest <= self.side:
            return picture.copy()  # the environment may draw the next frame into the same array
        height, width = (max(1, round(n * self.side / longest)) for n in picture.shape[:2])
        return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))


def render_error(config: EnvConfig) -> str:
    """Why this environment can't be rendered, in one line; empty where it can."""
    choose_gl_backend()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the line that is returned says the same
            with closing(config.build(1, **RenderCamera().options)) as env:
                env.reset(0)
                return _render_fault(env.unwrapped.render())
    except NotImplementedError:
        return "it has no render()"
    except ConfigError as error:
        return _make_error(str(error))
    except Exception as error:  # code of the environment may raise anything
        return _one_line(f"{_error_text(error)}{gl_hint(error)}")


def _render_fault(pictures: Any) -> str:
    if not pictures or any(picture is None for picture in pictures):
        return "its render() gives nothing in the mode rgb_array"
    for picture in map(np.asarray, pictures):
        valid = picture.ndim == 3 and picture.shape[2] in (3, 4) and picture.dtype == np.uint8
        if not valid or not picture.size:
            found = f"{picture.dtype} {picture.shape}"
            return f"its render() gives {found}; pictures are uint8 (h, w, 3)"
    return ""


def _make_error(error: str) -> str:
    """An environment without the argument `render_mode` runs, but renders nothing."""
    return "it takes no render_mode" if "render_mode" in error else _one_line(error)


def _error_text(error: Exception) -> str:
    """The message of a missing dependency already names it and how to install it."""
    needs_install = isinstance(error, DependencyNotInstalled)
    return str(error) if needs_install else f"{type(error).__name__}: {error}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
