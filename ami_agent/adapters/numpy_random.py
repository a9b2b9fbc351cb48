"""NumPy's global random generator, from which some environments draw although Gymnasium gives each
a generator of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
