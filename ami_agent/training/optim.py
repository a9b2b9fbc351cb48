"""The loop of stochastic gradient descent on one loss, its settings and its metrics."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import cos, pi

import torch
from torch import Tensor, nn

from modules.types import (
    BATCH,
    FRACTION,
    RATE,
    STEPS,
    ConfigError,
    DivergenceError,
    validate_ranges,
)

Loss = Callable[[torch.Generator], dict[str, Tensor]]
"""Samples a batch with the generator and returns the terms of its loss by name, each a scalar. All
randomness comes from the generator, so a seed decides everything."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with linear warm-up and cosine decay of the learning rate."""

    steps: int
    """Updates."""
    batch_size: int
    lr: float = 1e-3
    """Learning rate after the warm-up."""
    warmup_steps: int = 50
    """Updates over which the learning rate rises to `lr`."""
    grad_clip_norm: float = 2.0
    """Norm to which larger gradients are clipped."""
    weight_decay: float = 0.01
    final_lr_fraction: float = 0.0
    """Learning rate at the end, as a fraction of `lr`."""

    def __post_init__(self) -> None:
        validate_ranges(
            self,
            steps=STEPS,
            batch_size=BATCH,
            lr=RATE,
            warmup_steps=(0, 1_000_000),
            grad_clip_norm=(1e-6, 1e12),
        )
        validate_ranges(self, weight_decay=RATE, final_lr_fraction=FRACTION)

    def num_groups(self, group_size: int) -> int:
        """The number of groups in a batch; ConfigError if it is not a whole number."""
        if group_size < 1 or self.batch_size % group_size:
            raise ConfigError(
                f"a batch of {self.batch_size} can't be divided into groups of {group_size}"
            )
        return self.batch_size // group_size


class SGDLoop:
    """Descends one loss with AdamW, warm-up and cosine decay."""

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        config: OptimConfig,
        *,
        weights: Mapping[str, float],
        seed: int,
        post_step: Callable[[], None] = lambda: None,
    ) -> None:
        """`weights`: of the terms, by name, 1 where none is given. `post_step` is called after each
        update."""
        self.module, self.loss, self.config = module, loss, config
        self.weights, self.post_step = weights, post_step
        self.step = 0
        self.generator = torch.Generator().manual_seed(seed)
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        # fused is faster on a CPU; on a GPU it would keep its step counts there, not on the host
        fused = all(p.device.type == "cpu" for p in self.parameters)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.lr, weight_decay=config.weight_decay, fused=fused or None
        )

    def current_lr(self) -> float:
        """The learning rate of the next step."""
        warmup_factor = min(1.0, (self.step + 1) / max(1, self.config.warmup_steps))
        decay = (1 + cos(pi * self.step / self.config.steps)) / 2
        return (
            self.config.lr
            * warmup_factor
            * (self.config.final_lr_fraction + (1 - self.config.final_lr_fraction) * decay)
        )

    def update(self) -> dict[str, Tensor]:
        """One step. Returns metrics, on the device: the terms by name, `loss`, their weighted sum,
        and `gradient`, the norm before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.current_lr()
        self.module.train()  # an evaluation in between sets eval mode
        terms = self.loss(self.generator)
        total = torch.stack([self.weights.get(k, 1.0) * term for k, term in terms.items()]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.grad_clip_norm)
        self.optimizer.step()
        self.post_step()
        self.step += 1
        return {
            "loss": total.detach(),
            "gradient": norm,
            **{k: term.detach() for k, term in terms.items()},
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the next step depends on."""
        optimizer_slots = self.optimizer.state_dict()["state"]
        moments = {
            f"slot.{i}.{k}": v for i, slot in optimizer_slots.items() for k, v in slot.items()
        }
        module = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        own_state = {"random": self.generator.get_state(), "step": torch.tensor(self.step)}
        return {**moments, **module, **own_state}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        optimizer_slots: dict[int, dict[str, Tensor]] = {}
        module: dict[str, Tensor] = {}
        for name, value in state.items():
            kind, _, rest = name.partition(".")
            if kind == "slot":
                index, _, moment = rest.partition(".")
                # AdamW counts its steps on the host
                slot_value = value.cpu() if moment == "step" else value
                optimizer_slots.setdefault(int(index), {})[moment] = slot_value
            elif kind == "module":
                module[rest] = value
        self.module.load_state_dict(module)
        full_state = self.optimizer.state_dict()
        self.optimizer.load_state_dict({**full_state, "state": optimizer_slots})
        self.generator.set_state(state["random"].cpu())
        self.step = int(state["step"])


def check_finite(stage: str, step: int, values: Mapping[str, float]) -> None:
    """Raises DivergenceError naming the first value that is not finite."""
    for name, value in values.items():
        if not abs(value) < float("inf"):
            raise DivergenceError(
                f"{stage}: {name} became {value} by step {step}; a smaller learning rate may help"
            )


def average_metrics(history: Iterable[Mapping[str, Tensor]]) -> dict[str, float]:
    """The mean of each metric over some updates. Reading it makes the host wait for the device."""
    values_by_name: dict[str, list[Tensor]] = {}
    for row in history:
        for name, value in row.items():
            values_by_name.setdefault(name, []).append(value)
    return {name: float(torch.stack(values).mean()) for name, values in values_by_name.items()}


def stack_metrics(history: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The metrics of some updates, each stacked by name, for a checkpoint."""
    names = dict.fromkeys(name for row in history for name in row)
    return {name: torch.stack([row[name] for row in history if name in row]) for name in names}


def unstack_metrics(metrics: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Metrics of updates with the same average as those that were stacked."""
    return [{name: value} for name, values in metrics.items() for value in values]


def tune_malloc() -> None:
    """Lets glibc keep freed memory instead of returning it to the kernel: training on images is up
    to three times slower where the memory of every batch is mapped anew."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    m_trim_threshold, m_mmap_max = -1, -4
    if hasattr(libc, "mallopt"):  # musl has none
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**30)
