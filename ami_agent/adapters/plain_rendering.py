"""MuJoCo's pictures without what makes them slow where no GPU draws them."""

from __future__ import annotations

from typing import Any

import gymnasium

from modules.types import ConfigError


class PlainRendering(gymnasium.Wrapper):
    """An environment of MuJoCo that draws without shadows, reflections and antialiasing: on a CPU
    many times as fast. ConfigError for an environment that has no MuJoCo model."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        unwrapped: Any = env.unwrapped
        model: Any = getattr(unwrapped, "model", None)
        if not hasattr(model, "light_castshadow"):
            raise ConfigError(
                f"plain_rendering is True, but {type(unwrapped).__name__} has no MuJoCo model as "
                "its attribute `model`; it must be False"
            )
        model.light_castshadow[:] = 0
        model.mat_reflectance[:] = 0
        model.vis.quality.offsamples = 0  # read when a renderer is made
        _discard_renderers(unwrapped)


def _discard_renderers(env: Any) -> None:
    """Those that a wrapper or the environment itself has made already."""
    renderer: Any = getattr(env, "mujoco_renderer", None)  # Gymnasium's
    # Gymnasium has no public way to make viewers anew; one that keeps them elsewhere goes on with
    # antialiasing
    if viewers := getattr(renderer, "_viewers", None):
        renderer.close()
        viewers.clear()
    for attribute, make in (
        ("custom_renderer", "initialize_renderer"),  # mazes of OGBench
        ("_renderer", "_initialize_renderer"),  # arms of OGBench
    ):
        if getattr(env, attribute, None) is not None:
            getattr(env, make)()
