"""The value critics: trainable costs, the discounted sum of every drive (LeCun 2022, 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from modules.nets import EnsembleHead, StandardizedHead, relu_mlp
from modules.types import FRACTION, WIDTH, BadSetting, MapShape, Settings


@dataclass(frozen=True, kw_only=True)
class ValueCriticsConfig(Settings):
    hidden: Annotated[int, WIDTH] = 256
    discount: Annotated[float, FRACTION] = 0.97
    """gamma; 0: derived from the length of the collected episodes when training of the critics
    begins, and saved with their weights."""
    num_critics: Annotated[int, (1, 100)] = 1
    """Size of the ensemble of critics."""
    norm: bool = False
    """LayerNorm in every hidden layer, which bounds the values of unfamiliar states (Ball et al.
    2023)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.discount == 1:
            raise BadSetting("discount", self.discount, "from 0 to less than 1")

    def build(self, shape: MapShape, drives: int) -> ValueCritics:
        critics = EnsembleHead(
            relu_mlp(prod(shape), self.hidden, drives, self.norm) for _ in range(self.num_critics)
        )
        return ValueCritics(critics, drives, self.discount)


class ValueCritics(StandardizedHead):
    """A value function for each of W drives: V(s) = sum_k gamma^k c_k, the discounted sum of the
    costs after state s, `[..., D]` -> `[..., W]` (LeCun 2022, 3.3; Sutton & Barto 2018, 3.5). Of an
    ensemble the maximum counts, the most pessimistic cost (clipped double Q-learning, Fujimoto et
    al. 2018).

    If a constant part of the reward is subtracted from every step (`StandardizedHead.offset`), it
    is also subtracted from all steps that would follow the end of an episode: the value `terminal`,
    `[W]`, of a terminal state. All values then change by the same constant, and the order of
    policies stays."""

    terminal: Tensor
    gamma: Tensor  # the discount, saved with the weights
    CONSTANT_UNIT = 0.1

    def __init__(self, layers: nn.Module, drives: int, discount: float) -> None:
        super().__init__(layers, drives)
        self.discount = discount
        self.discount_from_episodes = not discount
        self.register_buffer("terminal", torch.zeros(drives))
        self.register_buffer("gamma", torch.tensor(discount, dtype=torch.float64))

    def set_discount(self, discount: float) -> None:
        """Sets the discount and the buffer it is saved in."""
        self.discount = discount
        self.gamma.fill_(discount)

    def set_terminal_value(self, step_shift: Tensor, can_terminate: bool) -> None:
        """The value of terminal states, where the cost of every step is shifted by `step_shift`
        `[W]`. `can_terminate`: episodes do terminate, and the scale must cover that value."""
        self.terminal.copy_(step_shift / (1 - self.discount))
        if can_terminate:
            self.scale.copy_(torch.maximum(self.scale, self.CONSTANT_UNIT * self.terminal.abs()))

    def rescale_costs(self, growth: Tensor, step_shift: Tensor, can_terminate: bool) -> None:
        """Adapts the values to step costs whose units have grown by `growth` `[W]` and that are
        shifted by `step_shift` `[W]`; the predictions are otherwise unchanged."""
        old_scale, old_terminal = self.scale.clone(), self.terminal.clone()
        self.scale.mul_(growth)
        self.set_terminal_value(step_shift, can_terminate)
        self.mean.add_(self.terminal - old_terminal)
        self.rescale(self.scale / old_scale)

    def step_shift(self) -> Tensor:
        """The constant that is added to the cost of every step, `[W]`."""
        return self.terminal * (1 - self.discount)

    def all_values(self, state: Tensor) -> Tensor:
        """The values of each critic of the ensemble, `[K, ..., W]`."""
        return super().forward(state)

    def forward(self, state: Tensor) -> Tensor:
        return self.all_values(state).amax(0)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """A discount from the settings takes precedence over the saved one."""
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.set_discount(float(self.gamma) if self.discount_from_episodes else self.discount)
