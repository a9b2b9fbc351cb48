"""One world by itself: the batch of worlds, with a batch of one."""

from __future__ import annotations

from typing import Any

from ..single import SingleEnv
from .worlds import ForageVectorEnv


class ForageEnv(SingleEnv[ForageVectorEnv]):
    """Takes the keywords of `ForageVectorEnv`; see there."""

    interoception_names = ForageVectorEnv.interoception_names

    def __init__(self, **settings: Any) -> None:
        super().__init__(ForageVectorEnv(1, **settings))
