"""Drives: intrinsic costs that are hard-wired to what the body feels (LeCun 2022, 3.2 and 4.3).

A drive is a frozen, differentiable function of one interoceptive channel. It has no parameters, so
nothing can train it; the world model only learns to predict what it is a function of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modules.types import CONTINUE, ConfigError

SET_POINT = 1.0
"""Energy at which there is no hunger."""


def hunger(energy: Tensor) -> Tensor:
    """Energy below the set point."""
    return (SET_POINT - energy).relu()


def pain(damage: Tensor) -> Tensor:
    """Damage, as it is felt."""
    return damage


def taste(meal: Tensor) -> Tensor:
    """Minus what is eaten."""
    return -meal


def reward(reward: Tensor) -> Tensor:
    """Minus the reward of the world."""
    return -reward


@dataclass(frozen=True)
class Drive:
    """One intrinsic cost: which channel it feels, how, in which unit, and where it is from."""

    channel: str
    cost: Callable[[Tensor], Tensor]
    unit: str
    reference: str


DRIVES: Mapping[str, Drive] = {
    "hunger": Drive("energy", hunger, "energy below the set point", "Keramati & Gutkin 2014"),
    "pain": Drive("damage", pain, "damage of a step", "LeCun 2022, 4.3"),
    "taste": Drive("meal", taste, "ripe foods", "Berridge 2004"),
    "reward": Drive("reward", reward, "rewards of the world", "Sutton & Barto 2018, 3.2"),
}


CENTRED = ("reward",)
"""Drives that are linear in their channel and hold for every step."""


class Drives:
    """The drives of one body, which feels these channels."""

    def __init__(self, names: Sequence[str], channels: Sequence[str]) -> None:
        for name in names:
            if name not in DRIVES:
                raise ConfigError(f"no drive is called {name!r}; there are {', '.join(DRIVES)}")
            if DRIVES[name].channel not in channels:
                raise ConfigError(
                    f"{name!r} feels {DRIVES[name].channel!r}, which this world does not declare; "
                    f"it declares {', '.join(channels)}"
                )
        self.names = tuple(names)
        self.columns = [channels.index(DRIVES[name].channel) for name in names]
        self.continue_index = [
            index for index, channel in enumerate(channels) if channel == CONTINUE
        ]

    def __call__(self, interoception: Tensor) -> Tensor:
        """What is felt `[..., I]` -> what each drive makes of it, `[..., W]`."""
        costs = [
            DRIVES[name].cost(interoception[..., column])
            for name, column in zip(self.names, self.columns, strict=True)
        ]
        return torch.stack(costs, -1) if costs else interoception[..., :0]

    def centred(self, channels: int) -> Tensor:
        """`[I]` bool: the channels of which a constant part may be taken away, for what a drive
        makes of it is a constant as well."""
        columns = dict(zip(self.names, self.columns, strict=True))
        centred = [columns[name] for name in CENTRED if name in columns]
        return torch.tensor([channel in centred for channel in range(channels)])

    def step_shift(self, subtract_offset: Callable[[Tensor], Tensor], zero: Tensor) -> Tensor:
        """How much dearer every step becomes when interoception is made `subtract_offset`, `[W]`;
        `zero` is felt, `[I]`."""
        return self(subtract_offset(zero)) - self(zero)

    def continue_prob(self, interoception: Tensor) -> Tensor:
        """What is felt `[..., I]` -> the chance that life goes on after it, `[...]`; 1 for a body
        that can't die."""
        return interoception[..., self.continue_index].clamp(0, 1).prod(-1)

    def survival(self, interoception: Tensor) -> tuple[Tensor, Tensor]:
        """What is felt in H steps `[..., H, I]` -> the chances to be alive before each and after
        it, both `[..., H]`."""
        after = self.continue_prob(interoception).cumprod(-1)
        return torch.cat([torch.ones_like(after[..., :1]), after[..., :-1]], -1), after
