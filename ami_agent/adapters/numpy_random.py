"""NumPy's global random generator, from which some environments draw although Gymnasium gives each
a generator of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np


@contextmanager
def numpy_random_of(generator: np.random.RandomState) -> Iterator[None]:
    """Within the block NumPy's global functions draw from `generator`, which advances; after it
    they continue as if nothing had been drawn."""
    shared = np.random.mtrand._rand
    before = shared.get_state(legacy=False)
    shared.set_state(generator.get_state(legacy=False))
    try:
        yield
    finally:
        generator.set_state(shared.get_state(legacy=False))
        shared.set_state(before)


class OwnNumpyRandom(gymnasium.Wrapper):
    """An environment that has NumPy's global generator to itself. A reset with a seed seeds it."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.generator = np.random.RandomState()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if seed is not None:
            self.generator.seed(seed)
        with numpy_random_of(self.generator):
            return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        with numpy_random_of(self.generator):
            return self.env.step(action)
