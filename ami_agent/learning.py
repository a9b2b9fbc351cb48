"""One pure loss per trainable box, and the Learner that descends it.

A loss maps a batch to its terms by name, each a scalar tensor; the names are the names of the
weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import cos, pi

import torch
from torch import Tensor, nn

from modules import objectives
from modules.cost import Quasimetric
from modules.types import Diverged, Trajectory, UnusableInput, require
from modules.world_model import Level

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
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        require(self, steps=0, batch=1, lr=0, warmup=0, clip=0, weight_decay=0)

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
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=config.lr, weight_decay=config.weight_decay
        )

    def rate(self) -> float:
        """The learning rate of the coming step."""
        warm = min(1.0, (self.step + 1) / max(1, self.config.warmup))
        return self.config.lr * warm * (1 + cos(pi * self.step / self.config.steps)) / 2

    def update(self) -> dict[str, Tensor]:
        """One step; the terms by name and `loss`, their weighted sum, still on the device."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
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


def world_model_loss(
    trajectory: Trajectory, perception: nn.Module, target: nn.Module, level: Level, *,
    channels: int, together: int,
) -> dict[str, Tensor]:  # fmt: skip
    """The joint-embedding prediction over several steps, and what keeps it from collapsing.

    Over the batch every dimension must vary, so that in a map every place tells layouts apart;
    within an episode every channel must, wherever it happens.
    `together`: windows come in runs of so many from one episode, whose mean the terms named
    `_within` take away. The states are encoded once; `target` says what is to be predicted.
    """
    obs, actions = trajectory.obs, trajectory.actions
    assert isinstance(obs, Tensor)
    flat = obs.flatten(0, 1)
    encoded = perception(flat)
    states = encoded.unflatten(0, obs.shape[:2])  # [B, T + 1, D]
    targets = target(flat, encoded).unflatten(0, obs.shape[:2])
    predicted = level.unroll(states[:, 0], actions)
    guessed = level.dynamics.inverse(states[:, :-1], states[:, 1:])  # type: ignore[operator]
    features = objectives.fold(states, channels)
    moving = objectives.fold(objectives.within(states, together), channels)
    return {
        "prediction": objectives.prediction(predicted[:, 1:], targets[:, 1:]),
        "variance": objectives.variance(states.flatten(0, 1)),
        "covariance": objectives.covariance(features),
        "variance_within": objectives.variance(moving),
        "covariance_within": objectives.covariance(moving),
        "similarity": objectives.similarity(states),
        "inverse": objectives.inverse(guessed, actions),
    }


def unroll_loss(level: Level, trajectory: Trajectory) -> Tensor:
    """The same prediction where observations are states already, `[B, T + 1, D]`; scalar."""
    assert isinstance(trajectory.obs, Tensor)
    predicted = level.unroll(trajectory.obs[:, 0], trajectory.actions)
    return objectives.prediction(predicted[:, 1:], trajectory.obs[:, 1:])


class Multiplier(nn.Module):
    """The dual variable of a constraint, at least 0; it grows while the constraint is violated."""

    def __init__(self, start: float = 1.0, speed: float = 100.0) -> None:
        super().__init__()
        self.speed = speed
        raw = torch.tensor(start).expm1().log() / speed
        self.raw = nn.Parameter(raw)

    def forward(self) -> Tensor:
        return nn.functional.softplus(self.speed * self.raw)


def quasimetric_loss(
    distance: Quasimetric, multiplier: Multiplier, state: Tensor, next_state: Tensor, *,
    far: float, slack: float,
) -> dict[str, Tensor]:  # fmt: skip
    """Quasimetric RL (Wang et al. 2023, equation 10): push everything apart, but let no lived step
    cost more than 1. States and next states `[..., B, D]`, drawn at random: a state's goal is its
    neighbour among the B; `far` in steps."""
    start, step = distance.embed(state), distance.embed(next_state)
    apart = distance.between(start, start.roll(1, -2))  # [..., B]
    push = nn.functional.softplus(far - apart, beta=0.1).mean()
    violation = (distance.between(start, step) - 1).relu().square().mean() - slack**2
    price = multiplier()
    return {
        "far": push,
        "near": price.detach() * violation,
        "price": -price * violation.detach(),
    }


def temporal_difference_loss(
    distance: nn.Module, slow: nn.Module, state: Tensor, next_state: Tensor, goal: Tensor,
) -> dict[str, Tensor]:  # fmt: skip
    """d(s, g) = 1 + d(s', g), nothing to go once there; `slow` is a lagging copy.

    Off-policy, so each lived step only promises an upper bound: errors downward weigh less, as in
    expectile regression (IQL, Kostrikov et al. 2022).
    """
    with torch.no_grad():
        there = (next_state - goal).square().sum(-1) < 1e-6
        promised = 1 + slow(next_state, goal).masked_fill(there, 0)
    error = distance(state, goal) - promised
    weight = torch.where(error > 0, 0.9, 0.1)
    return {"bellman": (weight * error.square()).mean()}


def taught_loss(
    distance: nn.Module, state: Tensor, goal: Tensor, steps: Tensor
) -> dict[str, Tensor]:
    """Regression on known steps to go `[B]`; relative, so that near goals are learnt as well.

    Infinite steps, a goal that no known path leads to, teach nothing.
    """
    known = steps.isfinite()
    steps = steps.masked_fill(~known, 0)
    error = (distance(state, goal) - steps).square() / (1 + steps)
    return {"taught": (error * known).sum() / known.sum().clamp_min(1)}


def policy_loss(
    policy: nn.Module, state: Tensor, goal: Tensor, action: Tensor
) -> dict[str, Tensor]:
    """Imitation of Mode-2's first action; states, goals `[B, D]`, actions `[B, A]`."""
    return {"imitation": (policy(state, goal) - action).square().sum(-1).mean()}


def average(history: Iterable[Mapping[str, Tensor]]) -> dict[str, float]:
    """The mean of each value over some updates; this is where the host waits for the device."""
    rows = list(history)
    return {name: float(torch.stack([row[name] for row in rows]).mean()) for name in rows[0]}
