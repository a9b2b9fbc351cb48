"""What a lesson is, and the lesson that teaches nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
"""Of the recorded steps, the fraction that is worth no word when it is drawn."""


class StageRun(Protocol):
    """Something that learns step by step."""

    @property
    def step(self) -> int: ...
    @property
    def eval_mode_due(self) -> str:
        """The mode in which it is worth judging the agent by now, if there is one."""
        ...

    @property
    def total(self) -> int: ...
    def update(self) -> dict[str, Tensor]: ...
    def finish(self) -> None: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


@runtime_checkable
class HoldsEnvs(Protocol):
    """A learner whose environments stay open between its updates."""

    def close_envs(self) -> None: ...
    def reopen_envs(self) -> None:
        """Other episodes begin; those that were under way are cut."""


class Stage(Protocol):
    """What is to be learnt; `begin` gives the one who learns it."""

    @property
    def env_steps(self) -> int:
        """Steps that it adds to each life in memory."""

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun: ...


class OfflineStage:
    """Any lesson that is taken without living."""

    env_steps = 0


@dataclass(frozen=True, kw_only=True)
class NoStage(OfflineStage):
    """Nothing to learn here: the ablation of any lesson."""

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        return NoStageRun()


class NoStageRun:
    """Learns nothing, at once."""

    total = step = 0
    eval_mode_due = ""

    def update(self) -> dict[str, Tensor]:
        return {}

    def finish(self) -> None:
        """Nothing was begun."""

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing was put away."""


def task_modality_sets(agent: Agent) -> list[dict[str, float]]:
    """The ways in which perception is primed: the agent's own, and those of its tasks."""
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
    """The same memory with states in the place of observations: perception learns no more, so
    each is encoded once."""
    weights = (
        agent.configurator.default_modality_weights
        if modality_weights is None
        else modality_weights
    )
    agent.perception.eval()
    episode_memory = EpisodeMemory(agent.short_term_memory)

    def encode(obs: Observation, reset_mask: Tensor) -> Tensor:
        episode_memory.reset(reset_mask)
        device_obs = tree_map(lambda part: part.to(agent.device), obs)
        return episode_memory.update(agent.perception(device_obs, weights))

    return agent.replay_buffer.map_observations(encode)


class SGDStageRun(SGDLoop):
    """A Learner is a pupil whose lesson is as long as its schedule."""

    eval_mode_due = ""
    fraction: Callable[[], Tensor] | None = None

    @property
    def total(self) -> int:
        return self.config.steps

    def log_drawn_fraction(
        self, buffer: ReplayBuffer, learner: str, length: int, recent: bool = False
    ) -> None:
        """Logs which fraction of the recorded steps windows of that length can hold, and says so
        where some are in none. `who` learns from them, in words."""
        self.fraction = partial(buffer.fraction, length, recent)
        fraction = float(self.fraction())
        if fraction < MIN_FRACTION:
            log.warning(
                f"{learner}: windows of {length} steps hold {100 * fraction:.1f} % of the recorded steps; "
                "the other steps are of episodes that were broken off, still run or are partly "
                "overwritten, and have fewer"
            )

    def update(self) -> dict[str, Tensor]:
        metrics = super().update()
        return {**metrics, "drawn_fraction": self.fraction()} if self.fraction else metrics

    def finish(self) -> None:
        """What was learnt is already in place."""
