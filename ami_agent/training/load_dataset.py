"""Memory is filled with what was recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ami_agent.adapters.env import EnvAdapter, EnvConfig
from ami_agent.training.base import StageRun
from modules.types import STEPS, ConfigError, validate_ranges

if TYPE_CHECKING:
    from ami_agent.adapters.datasets import EpisodeDataset
    from ami_agent.agent import Agent


@dataclass(frozen=True, kw_only=True)
class LoadDataset:
    """Nothing is lived: what others did in this world, and what came of it, is remembered."""

    minari: str = ""
    """Id of a Minari dataset on this machine."""
    run: str = ""
    """Folder of a run that kept its memory (`--keep-replay-buffer`)."""
    steps: int = 0
    """Steps that are remembered, and one between each two episodes: of a record that has more, the
    last. All, if not given."""

    def __post_init__(self) -> None:
        validate_ranges(self, steps=STEPS)
        if self.minari and self.run:
            raise ConfigError(f"data are of minari {self.minari} or of run {self.run}, not both")

    @property
    def num_envs(self) -> int:
        """Lives in memory: one, of all episodes."""
        return 1

    @property
    def env_steps(self) -> int:
        return self.steps

    def with_all_steps(self, env: EnvAdapter) -> LoadDataset:
        """The same, of as many steps as there are, unless fewer are asked for."""
        return replace(self, steps=self.steps or self.dataset(env).steps)

    def dataset(self, env: EnvAdapter) -> EpisodeDataset:
        """What there is; ConfigError where it is not of such a world."""
        if not (self.minari or self.run):
            raise ConfigError("recorded data need a name: minari or run")
        from ami_agent.adapters.datasets import (  # know agents, which are made of lessons
            from_minari,
            from_run,
        )

        return from_minari(self.minari, env) if self.minari else from_run(self.run, env)

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        return DatasetLoader(agent, env.build(1), self)


class DatasetLoader:
    """One episode at a time. A checkpoint holds those that were read so far."""

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
        memory = {f"memory.{n}": part for n, part in self.agent.replay_buffer.state_dict().items()}
        return {**memory, "here.step": torch.tensor(self.step)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        memory = {n.removeprefix("memory."): p for n, p in state.items() if n != "here.step"}
        self.agent.replay_buffer.load_state_dict(memory)
        self.step = int(state["here.step"])
        self.episodes = self.dataset.episodes(self.step)
