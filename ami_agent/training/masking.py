"""Masks of the valid steps in windows that reach beyond the end of their episode
(`Trajectory.valid`)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class ValidSteps:
    """Selects, of `[B, T, ...]`, the steps that are valid `[B, T]`: `[N, ...]`. Where `valid` is
    None, all are, and the tensor is returned as it is. The mask is indexed on its own device: a
    mask in host memory makes the host wait for no other."""

    def __init__(self, valid: Tensor | None) -> None:
        self.index = None if valid is None else valid.flatten().nonzero().squeeze(1)
        self.shape = None if valid is None else valid.shape

    def __call__(self, part: Tensor) -> Tensor:
        if self.index is None:
            return part
        return part.flatten(0, 1).index_select(0, self.index.to(part.device))

    def scatter(self, part: Tensor) -> Tensor:
        """The reverse: `[N, ...]` -> `[B, T, ...]`, 0 where no step is valid."""
        if self.index is None or self.shape is None:
            return part
        full = part.new_zeros(self.shape.numel(), *part.shape[1:])
        full = full.index_copy(0, self.index.to(part.device), part)
        return full.unflatten(0, tuple(self.shape))


def states_from_steps(valid: Tensor | None) -> Tensor | None:
    """The mask of the states `[B, T + 1]` that the valid steps `[B, T]` join."""
    return None if valid is None else torch.cat([torch.ones_like(valid[:, :1]), valid], 1)


def valid_macro_steps(valid: Tensor | None, num_steps: int) -> Tensor | None:
    """The mask of the macro-steps `[B, T]` all of whose `num_steps` steps are valid
    `[B, T * num_steps]`."""
    return None if valid is None else valid.unflatten(1, (-1, num_steps)).all(2)


def last_valid(valid: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Selects, of `[B, T, ...]`, the last valid step of each window that has a valid one."""
    if valid is None:
        return lambda part: part[:, -1]
    rows = valid[:, 0].nonzero().squeeze(1)
    step = valid[rows].sum(1) - 1
    return lambda part: part[rows.to(part.device), step.to(part.device)]
