"""A bound on what tensors may take while something is built from settings of a stranger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from modules.types import ConfigError

MIB = 2**20


class Ceiling(TorchFunctionMode):
    """Raises ConfigError where tensors that are made of nothing (weights, buffers) take more than
    `most` bytes together: such memory is claimed, and not yet filled."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.taken = most, 0

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and not any(isinstance(arg, Tensor) for arg in args):
            self.taken += made.nbytes
            if self.taken > self.most:
                raise ConfigError(
                    f"the agent would take more than {self.most // MIB} MiB, and its checkpoint "
                    "holds less: the sizes in the settings must be those of the weights"
                )
        return made
