"""Perception and world model learn to predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ami_agent.learning import Learning
from ami_agent.lessons.base import GradientPupil, Pupil, Study, as_states, primings
from ami_agent.lessons.hindsight import Remembered
from ami_agent.life import WorldConfig
from ami_agent.losses import unroll_loss, world_model_loss
from modules.memory import Parts
from modules.objectives import OTHERS, Weights, directions
from modules.targets import Itself, MovingAverage, Stopped
from modules.types import (
    BATCH,
    FRACTION,
    HORIZON,
    Observation,
    Trajectory,
    UnusableInput,
    by_sense,
    each,
    require,
)

if TYPE_CHECKING:
    from ami_agent.agent import Agent

KINDS = 64
"""Prototypes, where there are any."""


@dataclass(frozen=True, kw_only=True)
class Predict(Study):
    """Perception and world model together: predict in representation space, don't collapse."""

    weights: Weights = field(default_factory=Weights)
    learning: Learning = field(default_factory=lambda: Learning(steps=1200, batch=128))
    length: int = 8
    """Steps unrolled, T."""
    context: int = 0
    """Steps before these, of which recall makes what it can; from each of them a future of T steps
    is unrolled as well."""
    together: int = 1
    """Windows that come from one episode, for the statistics within it."""
    primed: float = 0.0
    """Chance that a window is perceived as one of the agent's tasks primes perception for."""
    target: Itself.Config | MovingAverage.Config | Stopped.Config = field(
        default_factory=Itself.Config
    )

    def __post_init__(self) -> None:
        require(self, length=HORIZON, context=(0, HORIZON[1]), together=BATCH, primed=FRACTION)
        self.learning.groups(self.together)

    def begin(self, agent: Agent, world: WorldConfig, seed: int) -> Pupil:
        return self.of(agent, agent.memory, seed)

    def of(self, agent: Agent, remembered: Remembered, seed: int) -> Pupil:
        """The one who learns it of what is remembered."""
        perception, target = agent.perception, self.target.build(agent.perception)
        window = self.context + self.length
        if not agent.memory.fraction(window):
            fits = max(1, agent.memory.longest() - self.context)
            raise UnusableInput(
                f"the world model learns from windows of {window} steps, but no episode has so "
                f"many, and none has ended: --objective.length {fits} and, where it is learnt as "
                f"life goes on, --interact.objective.length {fits}"
            )
        # the same whenever the same was lived: a unit that is taken again is the same unit
        agent.perception.adapt(_adapted_to(agent, remembered))  # type: ignore[operator]
        felt = _some(remembered, 4096, Parts(obs=(), actions=False)).interoception
        felt = felt[:, 0].to(agent.device)
        centred = agent.cost.body.centred(felt.shape[-1]).to(felt.device)
        agent.world_model.feeling.adapt(felt, centred)

        others = [name for name in OTHERS if getattr(self.weights, name)]
        drawn = directions(prod(agent.shape), torch.Generator().manual_seed(seed), KINDS)
        kinds = nn.Parameter(drawn.to(agent.device))
        learnt = nn.ParameterList([kinds] if "prototypes" in others else [])

        def loss(random: torch.Generator) -> dict[str, Tensor]:
            batch = remembered.sample(self.learning.batch, window, random, self.together)
            batch, primed = self._primed(agent, _to(batch, agent.device), random)
            return world_model_loss(
                batch, lambda obs: perception(obs, primed), lambda obs, s: target(obs, s, primed),
                agent.recall, agent.world_model, random,
                channels=agent.shape[0], together=self.together, context=self.context,
                others=others, kinds=kinds,
            )  # fmt: skip

        pupil = GradientPupil(
            nn.ModuleList([agent.perception, agent.recall, agent.world_model, target, learnt]),
            loss,
            self.learning,
            weights=asdict(self.weights),
            seed=seed,
            after=lambda: target.follow(agent.perception),
        )
        pupil.draws(agent.memory, "the world model", window)
        return pupil

    def _primed(
        self, agent: Agent, batch: Trajectory, random: torch.Generator
    ) -> tuple[Trajectory, dict[str, float | Tensor]]:
        """Gains by sense: those of a task in some windows, `[B * (T + 1)]`, the agent's own in the
        rest. What was felt in the former, NaN by now, can't be known by who perceives so."""
        own = agent.configurator.gains
        if not self.primed:
            return batch, dict(own)
        ways = primings(agent)
        windows, moments = len(batch.actions), batch.actions.shape[1] + 1
        chosen = torch.randint(len(ways), (windows,), generator=random)
        chosen[torch.rand(windows, generator=random) >= self.primed] = 0  # the agent's own
        gains = {name: torch.tensor([way[name] for way in ways])[chosen] for name in own}
        strange = (chosen > 0).to(batch.actions.device)[:, None, None]
        return batch._replace(interoception=batch.interoception.masked_fill(strange, torch.nan)), {
            name: g.to(batch.actions).repeat_interleave(moments) for name, g in gains.items()
        }


@dataclass(frozen=True, kw_only=True)
class Refine(Study):
    """The dynamics alone go on learning, in states as they are by now: on all of memory, and as
    much on the latest life, however perception is primed. What a state means stays as it is, and
    so do the critics."""

    learning: Learning = field(default_factory=lambda: Learning(steps=400, batch=128))
    length: int = 5
    """Steps unrolled, T."""

    def __post_init__(self) -> None:
        require(self, length=HORIZON)
        self.learning.groups(2)

    def begin(self, agent: Agent, world: WorldConfig, seed: int) -> Pupil:
        views = [as_states(agent, gains) for gains in primings(agent)]
        model, half, device = agent.world_model, self.learning.batch // 2, agent.device

        def loss(random: torch.Generator) -> dict[str, Tensor]:
            view = int(torch.randint(len(views), (), generator=random))
            drawn = (
                views[view].sample(half, self.length, random, latest=new) for new in (False, True)
            )
            old, new = (unroll_loss(model, _to(batch, device), random) for batch in drawn)
            return {
                "prediction": old["prediction"],
                "latest": new["prediction"],
                "feeling": (old["feeling"] + new["feeling"]) * (view == 0),
                "doubt": old["doubt"] + new["doubt"],
                "information": old["information"] + new["information"],
                "prior": old["prior"] + new["prior"],
            }

        weights = {"feeling": 10.0, "information": 0.01}
        pupil = GradientPupil(model, loss, self.learning, weights=weights, seed=seed)
        pupil.draws(views[0], "the world model", self.length)
        return pupil


def _some(remembered: Remembered, count: int, parts: Parts) -> Trajectory:
    """Steps that are the same whenever the same was collected."""
    return remembered.sample(count, 1, torch.Generator().manual_seed(0), parts=parts)


def _adapted_to(agent: Agent, remembered: Remembered) -> Observation:
    """What perception takes its units from: pictures are many bytes, and few will do."""
    counts: Mapping[str, int] = agent.perception.adapts  # type: ignore[assignment]
    found: dict[str, Tensor] = {}
    for count in sorted(set(counts.values())):
        names = [name for name, number in counts.items() if number == count]
        obs = by_sense(_some(remembered, count, Parts(names, False, False)).obs)
        found |= {name: obs[name][:, 0].to(agent.device) for name in names}
    return found.get("obs", found)


def _to(batch: Trajectory, device: torch.device) -> Trajectory:
    """The mask stays where it is: what it tells is asked for by the host."""
    obs = each(lambda part: part.to(device), batch.obs)
    rest = {name: getattr(batch, name).to(device) for name in Trajectory._fields[1:5]}
    return batch._replace(obs=obs, **rest)
