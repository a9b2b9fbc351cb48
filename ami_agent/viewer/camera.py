"""Frames of any environment that renders, and why another one doesn't."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import closing
from typing import Any, TypeAlias

import numpy as np
from gymnasium.error import DependencyNotInstalled
from PIL import Image

from ami_agent.adapters.env import EnvAdapter, EnvConfig
from ami_agent.adapters.fault_tolerance import EnvError, gl_hint
from ami_agent.adapters.imports import choose_gl_backend
from modules.types import ConfigError

Pictures: TypeAlias = tuple[np.ndarray, ...]
"""The frame of one environment at one step, `[h, w, 3]` uint8, or nothing."""

RENDER_HINT = " (its pictures are shown where it takes render_mode='rgb_array' and renders)"
NO_LIMIT = 1 << 20  # pixels; larger than the side of any frame


class Camera:
    """Frames of environments that were made with its `options`, at most `side` pixels on a side."""

    options: Mapping[str, Any] = {"render_mode": "rgb_array"}

    def __init__(self, side: int = NO_LIMIT) -> None:
        self.side = side

    def __call__(self, env: EnvAdapter) -> list[Pictures]:
        """The frame of each of B environments."""
        pictures = env.vector_env.render() or ()
        if fault := _render_fault(pictures):
            raise EnvError(f"the environment can no longer be rendered: {fault}")
        return [(self._downscale(np.asarray(picture)),) for picture in pictures]

    def _downscale(self, picture: np.ndarray) -> np.ndarray:
        """A copy: the environment may draw the next frame into the same array."""
        image = Image.fromarray(picture[..., :3])
        image.thumbnail((self.side, self.side), Image.Resampling.BOX, reducing_gap=None)
        return np.array(image)


def render_error(config: EnvConfig) -> str:
    """Why this environment can't be rendered, in one line; empty where it can."""
    choose_gl_backend()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the line that is returned says the same
            with closing(config.build(1, **Camera.options)) as env:
                env.reset(0)
                return _render_fault(env.unwrapped.render())
    except NotImplementedError:
        return f"it has no render(){RENDER_HINT}"
    except ConfigError as error:  # without the argument an environment runs, but renders nothing
        takes_none = "render_mode" in str(error)
        reason = f"it takes no render_mode{RENDER_HINT}" if takes_none else str(error)
    except DependencyNotInstalled as error:  # its message says how to install it
        reason = f"{error}{gl_hint(error)}"
    except Exception as error:  # code of the environment may raise anything
        reason = f"{type(error).__name__}: {error}{gl_hint(error)}"
    return " ".join(reason.split())


def _render_fault(pictures: Any) -> str:
    if not pictures or any(picture is None for picture in pictures):
        return "its render() gives nothing in the mode rgb_array"
    for picture in map(np.asarray, pictures):
        valid = picture.ndim == 3 and picture.shape[2] in (3, 4) and picture.dtype == np.uint8
        if not valid or not picture.size:
            found = f"{picture.dtype} {picture.shape}"
            return f"its render() gives {found}; pictures are uint8 (h, w, 3)"
    return ""
