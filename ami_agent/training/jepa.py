"""Perception and world model learn to predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ami_agent.adapters.env import EnvConfig
from ami_agent.losses import unroll_loss, world_model_loss
from ami_agent.training.base import (
    OfflineStage,
    SGDStageRun,
    StageRun,
    encode_buffer,
    task_modality_sets,
)
from ami_agent.training.hindsight import SamplesTrajectories
from ami_agent.training.optim import OptimConfig
from ami_agent.training.representation_losses import OPTIONAL_TERMS, LossWeights, directions
from modules.memory.replay_buffer import Parts
from modules.perception.target_encoder import (
    EMATargetConfig,
    OnlineTargetConfig,
    StopGradientTargetConfig,
)
from modules.types import (
    BATCH,
    FRACTION,
    HORIZON,
    ConfigError,
    Observation,
    Trajectory,
    as_dict,
    tree_map,
    validate_ranges,
)

if TYPE_CHECKING:
    from ami_agent.agent import Agent

NUM_PROTOTYPES = 64
"""Prototypes, where there are any."""


@dataclass(frozen=True, kw_only=True)
class TrainJEPA(OfflineStage):
    """Perception and world model together: predict in representation space, don't collapse."""

    weights: LossWeights = field(default_factory=LossWeights)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(steps=1200, batch_size=128))
    length: int = 8
    """Steps unrolled, T."""
    context_steps: int = 0
    """Steps before these, of which recall makes what it can; from each of them a future of T steps
    is unrolled as well."""
    group_size: int = 1
    """Windows that come from one episode, for the statistics within it."""
    task_modality_prob: float = 0.0
    """Chance that a window is perceived as one of the agent's tasks primes perception for."""
    target_encoder: OnlineTargetConfig | EMATargetConfig | StopGradientTargetConfig = field(
        default_factory=OnlineTargetConfig
    )

    def __post_init__(self) -> None:
        validate_ranges(
            self,
            length=HORIZON,
            context_steps=(0, HORIZON[1]),
            group_size=BATCH,
            task_modality_prob=FRACTION,
        )
        self.optim.num_groups(self.group_size)

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        return self.make_run(agent, agent.replay_buffer, seed)

    def make_run(self, agent: Agent, buffer: SamplesTrajectories, seed: int) -> StageRun:
        """The one who learns it of what is remembered."""
        perception, target_encoder = agent.perception, self.target_encoder.build(agent.perception)
        window_steps = self.context_steps + self.length
        if not agent.replay_buffer.fraction(window_steps):
            longest = max(1, agent.replay_buffer.max_window() - self.context_steps)
            raise ConfigError(
                f"the world model learns from windows of {window_steps} steps, but no episode has so "
                f"many, and none has ended: --train-jepa.length {longest} and, where it is learnt as "
                f"life goes on, --actor-critic.train-jepa.length {longest}"
            )
        # the same whenever the same was lived: a unit that is taken again is the same unit
        agent.perception.adapt(_normalization_obs(agent, buffer))  # type: ignore[operator]
        interoception = _fixed_sample(buffer, 4096, Parts(obs=(), actions=False)).interoception
        interoception = interoception[:, 0].to(agent.device)
        centred = agent.cost.interoceptive_cost.centred(interoception.shape[-1]).to(
            interoception.device
        )
        agent.world_model.interoception_head.adapt(interoception, centred)

        optional_terms = [name for name in OPTIONAL_TERMS if getattr(self.weights, name)]
        initial_prototypes = directions(
            prod(agent.shape), torch.Generator().manual_seed(seed), NUM_PROTOTYPES
        )
        prototypes = nn.Parameter(initial_prototypes.to(agent.device))
        extra_parameters = nn.ParameterList([prototypes] if "prototypes" in optional_terms else [])

        def loss(generator: torch.Generator) -> dict[str, Tensor]:
            batch = buffer.sample(self.optim.batch_size, window_steps, generator, self.group_size)
            batch, task_modality_prob = self._sample_modality_weights(
                agent, _to_device(batch, agent.device), generator
            )
            return world_model_loss(
                batch, lambda obs: perception(obs, task_modality_prob), lambda obs, s: target_encoder(obs, s, task_modality_prob),
                agent.short_term_memory, agent.world_model, generator,
                channels=agent.shape[0], group_size=self.group_size, context_steps=self.context_steps,
                optional_terms=optional_terms, prototypes=prototypes,
            )  # fmt: skip

        stage_run = SGDStageRun(
            nn.ModuleList(
                [
                    agent.perception,
                    agent.short_term_memory,
                    agent.world_model,
                    target_encoder,
                    extra_parameters,
                ]
            ),
            loss,
            self.optim,
            weights=asdict(self.weights),
            seed=seed,
            post_step=lambda: target_encoder.update(agent.perception),
        )
        stage_run.log_drawn_fraction(agent.replay_buffer, "the world model", window_steps)
        return stage_run

    def _sample_modality_weights(
        self, agent: Agent, batch: Trajectory, generator: torch.Generator
    ) -> tuple[Trajectory, dict[str, float | Tensor]]:
        """Gains by sense: those of a task in some windows, `[B * (T + 1)]`, the agent's own in the
        rest. What was felt in the former, NaN by now, can't be known by who perceives so."""
        default_weights = agent.configurator.default_modality_weights
        if not self.task_modality_prob:
            return batch, dict(default_weights)
        modality_sets = task_modality_sets(agent)
        num_windows, num_states = len(batch.actions), batch.actions.shape[1] + 1
        set_index = torch.randint(len(modality_sets), (num_windows,), generator=generator)
        set_index[torch.rand(num_windows, generator=generator) >= self.task_modality_prob] = (
            0  # the agent's own
        )
        modality_weights = {
            name: torch.tensor([modality_set[name] for modality_set in modality_sets])[set_index]
            for name in default_weights
        }
        is_task = (set_index > 0).to(batch.actions.device)[:, None, None]
        return batch._replace(interoception=batch.interoception.masked_fill(is_task, torch.nan)), {
            name: weights.to(batch.actions).repeat_interleave(num_states)
            for name, weights in modality_weights.items()
        }


@dataclass(frozen=True, kw_only=True)
class FinetuneDynamics(OfflineStage):
    """The dynamics alone go on learning, in states as they are by now: on all of memory, and as
    much on the latest life, however perception is primed. What a state means stays as it is, and
    so do the critics."""

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(steps=400, batch_size=128))
    length: int = 5
    """Steps unrolled, T."""

    def __post_init__(self) -> None:
        validate_ranges(self, length=HORIZON)
        self.optim.num_groups(2)

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        buffers = [
            encode_buffer(agent, modality_weights) for modality_weights in task_modality_sets(agent)
        ]
        model, half, device = agent.world_model, self.optim.batch_size // 2, agent.device

        def loss(generator: torch.Generator) -> dict[str, Tensor]:
            buffer_index = int(torch.randint(len(buffers), (), generator=generator))
            batches = (
                buffers[buffer_index].sample(half, self.length, generator, latest_run=recent_terms)
                for recent_terms in (False, True)
            )
            old_terms, recent_terms = (
                unroll_loss(model, _to_device(batch, device), generator) for batch in batches
            )
            return {
                "prediction": old_terms["prediction"],
                "recent": recent_terms["prediction"],
                "interoception": (old_terms["interoception"] + recent_terms["interoception"])
                * (buffer_index == 0),
                "ensemble": old_terms["ensemble"] + recent_terms["ensemble"],
                "kl": old_terms["kl"] + recent_terms["kl"],
                "prior_nll": old_terms["prior_nll"] + recent_terms["prior_nll"],
            }

        weights = {"interoception": 10.0, "kl": 0.01}
        stage_run = SGDStageRun(model, loss, self.optim, weights=weights, seed=seed)
        stage_run.log_drawn_fraction(buffers[0], "the world model", self.length)
        return stage_run


def _fixed_sample(buffer: SamplesTrajectories, count: int, parts: Parts) -> Trajectory:
    """Steps that are the same whenever the same was collected."""
    return buffer.sample(count, 1, torch.Generator().manual_seed(0), parts=parts)


def _normalization_obs(agent: Agent, buffer: SamplesTrajectories) -> Observation:
    """What perception takes its units from: pictures are many bytes, and few will do."""
    counts: Mapping[str, int] = agent.perception.adapt_sizes  # type: ignore[assignment]
    found: dict[str, Tensor] = {}
    for count in sorted(set(counts.values())):
        names = [name for name, number in counts.items() if number == count]
        obs = as_dict(_fixed_sample(buffer, count, Parts(names, False, False)).obs)
        found |= {name: obs[name][:, 0].to(agent.device) for name in names}
    return found.get("obs", found)


def _to_device(batch: Trajectory, device: torch.device) -> Trajectory:
    """The mask stays where it is: what it tells is asked for by the host."""
    obs = tree_map(lambda part: part.to(device), batch.obs)
    rest = {name: getattr(batch, name).to(device) for name in Trajectory._fields[1:5]}
    return batch._replace(obs=obs, **rest)
