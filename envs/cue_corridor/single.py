"""One corridor by itself: the batch of worlds, with a batch of one."""

from __future__ import annotations

from typing import Any, ClassVar

from ..single import SingleEnv
from .worlds import CueCorridorVectorEnv


class CueCorridorEnv(SingleEnv[CueCorridorVectorEnv]):
    """Takes the keywords of `CueCorridorVectorEnv`; see there."""

    interoception_names: ClassVar[tuple[str, ...]] = CueCorridorVectorEnv.interoception_names

    def __init__(self, **settings: Any) -> None:
        super().__init__(CueCorridorVectorEnv(1, **settings))
