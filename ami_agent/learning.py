"""The Learner that descends a loss, one for each trainable box (`losses.py`)."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import cos, pi

import torch
from torch import Tensor, nn

from modules.types import BATCH, FRACTION, RATE, STEPS, Diverged, UnusableInput, require

Loss = Callable[[torch.Generator], dict[str, Tensor]]
"""Draws its own batch with the generator it is given; so a seed decides everything."""


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How long and how fast a box learns."""

    steps: int
    batch: int
    lr: float = 1e-3
    warmup: int = 50
    clip: float = 2.0
    """The norm that a gradient is shortened to."""
    weight_decay: float = 0.01
    last: float = 0.0
    """Share of the rate that is left at the end."""

    def __post_init__(self) -> None:
        require(self, steps=STEPS, batch=BATCH, lr=RATE, warmup=(0, 1_000_000), clip=(1e-6, 1e12))
        require(self, weight_decay=RATE, last=FRACTION)

    def groups(self, together: int) -> int:
        """How many groups of `together` a batch has; raises UnusableInput if it doesn't divide."""
        if together < 1 or self.batch % together:
            raise UnusableInput(f"a batch of {self.batch} can't come in groups of {together}")
        return self.batch // together


class Learner:
    """AdamW with warm-up and cosine decay on one loss."""

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        config: Learning,
        *,
        weights: Mapping[str, float],
        seed: int,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        """`weights` by term, 1 where none is named; `after` follows each update."""
        self.module, self.loss, self.config = module, loss, config
        self.weights, self.after = weights, after
        self.step = 0
        self.random = torch.Generator().manual_seed(seed)
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        # one pass over all numbers; on a GPU its counts would have to live there as well
        fused = all(p.device.type == "cpu" for p in self.parameters)
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=config.lr, weight_decay=config.weight_decay, fused=fused or None
        )

    def rate(self) -> float:
        """The learning rate of the coming step."""
        warm = min(1.0, (self.step + 1) / max(1, self.config.warmup))
        fall = (1 + cos(pi * self.step / self.config.steps)) / 2
        return self.config.lr * warm * (self.config.last + (1 - self.config.last) * fall)

    def update(self) -> dict[str, Tensor]:
        """One step; the terms by name and `loss`, their weighted sum, still on the device."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        self.module.train()  # who was judged meanwhile was not learning
        terms = self.loss(self.random)
        total = torch.stack([self.weights.get(k, 1.0) * term for k, term in terms.items()]).sum()
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        self.optimiser.step()
        self.after()
        self.step += 1
        return {
            "loss": total.detach(),
            "gradient": norm,
            **{k: term.detach() for k, term in terms.items()},
        }

    def state_dict(self) -> dict[str, Tensor]:
        """All that the next step depends on."""
        slots = self.optimiser.state_dict()["state"]
        moments = {f"slot.{i}.{k}": v for i, slot in slots.items() for k, v in slot.items()}
        module = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        here = {"random": self.random.get_state(), "step": torch.tensor(self.step)}
        return {**moments, **module, **here}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        slots: dict[int, dict[str, Tensor]] = {}
        module: dict[str, Tensor] = {}
        for name, value in state.items():
            kind, _, rest = name.partition(".")
            if kind == "slot":
                index, _, moment = rest.partition(".")
                # AdamW counts its steps on the host
                counted = value.cpu() if moment == "step" else value
                slots.setdefault(int(index), {})[moment] = counted
            elif kind == "module":
                module[rest] = value
        self.module.load_state_dict(module)
        whole = self.optimiser.state_dict()
        self.optimiser.load_state_dict({**whole, "state": slots})
        self.random.set_state(state["random"].cpu())
        self.step = int(state["step"])


def check_finite(stage: str, step: int, values: Mapping[str, float]) -> None:
    """Raises Diverged naming the first value that is not a finite number."""
    for name, value in values.items():
        if not abs(value) < float("inf"):
            raise Diverged(
                f"{stage}: {name} became {value} by step {step}; a smaller learning rate may do"
            )


def average(history: Iterable[Mapping[str, Tensor]]) -> dict[str, float]:
    """The mean of each value over some updates; this is where the host waits for the device."""
    found: dict[str, list[Tensor]] = {}
    for row in history:
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    return {name: float(torch.stack(values).mean()) for name, values in found.items()}


def stacked(history: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Figures of some updates -> by name, one after the other: what a checkpoint can hold."""
    names = dict.fromkeys(name for row in history for name in row)
    return {name: torch.stack([row[name] for row in history if name in row]) for name in names}


def unstacked(figures: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Updates whose average is the same."""
    return [{name: value} for name, values in figures.items() for value in values]


def keep_freed_memory() -> None:
    """Lets glibc keep freed memory instead of handing it back: training on images is up to three
    times slower where every batch is mapped anew."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    m_trim_threshold, m_mmap_max = -1, -4
    if hasattr(libc, "mallopt"):  # musl has none
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**30)
