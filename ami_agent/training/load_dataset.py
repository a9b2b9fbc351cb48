"""A stage that fills the replay buffer with recorded episodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ami_agent.adapters.datasets import EpisodeDataset, from_minari, from_run
from ami_agent.adapters.env import EnvAdapter, EnvConfig
from ami_agent.training.base import StageRun, with_prefixes, without_prefix
from modules.types import STEPS, ConfigError, validate_ranges

if TYPE_CHECKING:
    from ami_agent.agent import Agent


@dataclass(frozen=True, kw_only=True)
class LoadDataset:
    """Fills the replay buffer with the episodes of a dataset, in place of collecting steps in the
    environment."""

    minari: str = ""
    """Id of a Minari dataset on this machine."""
    run: str = ""
    """Folder of a run that kept its replay buffer (`--keep-replay-buffer`)."""
    steps: int = 0
    """Steps to keep, one between every two episodes included; of a longer dataset, the last ones.
    0: all."""

    def __post_init__(self) -> None:
        validate_ranges(self, steps=STEPS)
        if self.minari and self.run:
            raise ConfigError(f"data are of minari {self.minari} or of run {self.run}, not both")

    @property
    def num_envs(self) -> int:
        """Environments of the replay buffer: one, which holds all episodes."""
        return 1

    @property
    def env_steps(self) -> int:
        return self.steps

    def with_all_steps(self, env: EnvAdapter) -> LoadDataset:
        """The same stage with the steps of the whole dataset, unless `steps` is given."""
        return replace(self, steps=self.steps or self.dataset(env).steps)

    def dataset(self, env: EnvAdapter) -> EpisodeDataset:
        """The dataset; ConfigError where it is not of such an environment."""
        if not (self.minari or self.run):
            raise ConfigError("recorded data need a name: minari or run")

        return from_minari(self.minari, env) if self.minari else from_run(self.run, env)

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        return DatasetLoader(agent, env.build(1), self)


class DatasetLoader:
    """Loads one episode per update. A checkpoint holds those that were loaded so far."""

    eval_mode_due = ""

    def __init__(self, agent: Agent, env: EnvAdapter, stage: LoadDataset) -> None:
        dataset = stage.dataset(env)
        self.agent, self.env, self.step, self.total = agent, env, 0, dataset.num_episodes
        self.dataset = dataset
        self.episodes = dataset.episodes(0)

    def update(self) -> dict[str, Tensor]:
        self.agent.replay_buffer.add_episode(next(self.episodes))
        self.step += 1
        return {}

    def finish(self) -> None:
        self.env.close()

    def state_dict(self) -> dict[str, Tensor]:
        own_state = {"step": torch.tensor(self.step)}
        return with_prefixes({"memory": self.agent.replay_buffer.state_dict(), "here": own_state})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.agent.replay_buffer.load_state_dict(without_prefix(state, "memory"))
        self.step = int(state["here.step"])
        self.episodes = self.dataset.episodes(self.step)
