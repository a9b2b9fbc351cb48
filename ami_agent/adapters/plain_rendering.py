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
                "plain_rendering is True, but the environment has no MuJoCo model (`model` of "
                f"{type(unwrapped).__name__}); it must be False"
            )
        model.light_castshadow[:] = 0
        model.mat_reflectance[:] = 0
        model.vis.quality.offsamples = 0  # read when a renderer is made
        if getattr(unwrapped, "custom_renderer", None) is not None:  # OGBench has made its own
            unwrapped.initialize_renderer()
