"""One world by itself: the batch of worlds, with a batch of one."""

from __future__ import annotations

from typing import Any

from ..single import SingleEnv
from .worlds import WindyRoomsVectorEnv


class WindyRoomsEnv(SingleEnv[WindyRoomsVectorEnv]):
    """Takes the keywords of `WindyRoomsVectorEnv`; see there."""

    interoception_names = WindyRoomsVectorEnv.interoception_names

    def __init__(self, **settings: Any) -> None:
        super().__init__(WindyRoomsVectorEnv(1, **settings))
