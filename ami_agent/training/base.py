"""What a training stage is, and what the stages share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor

from ami_agent.adapters.env import EnvConfig
from ami_agent.training.optim import SGDLoop
from modules.memory.short_term import EpisodeMemory
from modules.types import ModalityWeights, Observation, tree_map

if TYPE_CHECKING:
    from ami_agent.agent import Agent
    from modules.memory.replay_buffer import ReplayBuffer

log = logging.getLogger(__name__)

MIN_FRACTION = 0.9
"""Fraction of the recorded steps below which training on them logs a warning."""


class StageRun(Protocol):
    """A stage while it runs: it learns step by step."""

    @property
    def step(self) -> int: ...
    @property
    def eval_mode_due(self) -> str:
        """The mode in which an evaluation of the agent is due at this step; empty if none is."""
        ...

    @property
    def total(self) -> int: ...
    def update(self) -> dict[str, Tensor]: ...
    def finish(self) -> None: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


@runtime_checkable
class HoldsEnvs(Protocol):
    """A stage run whose environments stay open between its updates."""

    def close_envs(self) -> None: ...
    def reopen_envs(self) -> None:
        """Starts new episodes; those that were running are broken off."""


class Stage(Protocol):
    """The settings of a stage; `start` makes the run that learns by them."""

    @property
    def env_steps(self) -> int:
        """Steps that the stage adds to the replay buffer, in each environment."""

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun: ...


class OfflineStage:
    """A stage that adds no step to the replay buffer."""

    env_steps = 0


def task_modality_sets(agent: Agent) -> list[dict[str, float]]:
    """The different modality weights with which the agent perceives: its default, and those of its
    tasks."""
    default = agent.configurator.default_modality_weights
    modality_sets = [
        default,
        *({**default, **task.modality_weights} for task in agent.tasks.values()),
    ]
    return [
        modality_set
        for index, modality_set in enumerate(modality_sets)
        if modality_set not in modality_sets[:index]
    ]


def encode_buffer(agent: Agent, modality_weights: ModalityWeights | None = None) -> ReplayBuffer:
    """The replay buffer with states in the place of observations, each encoded once: for stages
    that don't train perception."""
    weights = (
        agent.configurator.default_modality_weights
        if modality_weights is None
        else modality_weights
    )
    agent.perception.eval()
    episode_memory = EpisodeMemory()

    def encode(obs: Observation, reset_mask: Tensor) -> Tensor:
        nonlocal episode_memory
        features = agent.perception(tree_map(lambda part: part.to(agent.device), obs), weights)
        state, episode_memory = episode_memory.reset(reset_mask).update(
            agent.short_term_memory, features
        )
        return state

    return agent.replay_buffer.map_observations(encode)


class SGDStageRun(SGDLoop):
    """A stage run that descends one loss, for as many steps as its optimizer's settings say."""

    eval_mode_due = ""
    fraction: Callable[[], Tensor] | None = None

    @property
    def total(self) -> int:
        return self.config.steps

    def log_drawn_fraction(
        self, buffer: ReplayBuffer, learner: str, length: int, recent: bool = False
    ) -> None:
        """Logs the fraction of the recorded steps that windows of `length` steps can hold, with a
        warning where it is low. `learner` names, in the warning, what trains on the windows."""
        self.fraction = partial(buffer.fraction, length, recent)
        fraction = float(self.fraction())
        if fraction < MIN_FRACTION:
            log.warning(
                f"{learner}: windows of {length} steps hold {100 * fraction:.1f} % of the recorded "
                "steps; the other steps are of episodes that were broken off, still run or are "
                "partly overwritten, and have fewer"
            )

    def update(self) -> dict[str, Tensor]:
        metrics = super().update()
        return {**metrics, "drawn_fraction": self.fraction()} if self.fraction else metrics

    def finish(self) -> None:
        """The trained modules are the agent's own."""


def with_prefixes(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors by `prefix.name`, of tensors by name by prefix."""
    return {f"{prefix}.{n}": value for prefix, part in parts.items() for n, value in part.items()}


def without_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of that prefix, by name without it."""
    own = {n: value for n, value in state.items() if n.startswith(f"{prefix}.")}
    return {n.removeprefix(f"{prefix}."): value for n, value in own.items()}
