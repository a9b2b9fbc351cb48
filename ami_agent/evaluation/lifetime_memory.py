"""Lasting memory at the beginning and at the end of the lifetimes of an evaluation, in files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ami_agent.adapters.env import ActFn
from ami_agent.agent import Agent, Controller
from ami_agent.evaluation.policies import EpisodeStart, PolicyFactory
from ami_agent.storage import checkpoint
from modules.memory.lasting import LastingMemory, Memories
from modules.types import ConfigError


class LifetimeMemory:
    """What the lifetimes of an evaluation begin with, that of as many environments in the folder
    `load`; and what they end with, for the folder `save`. Either may be empty."""

    def __init__(self, agent: Agent, seeds: Sequence[int], load: str = "", save: str = "") -> None:
        """`seeds`: that of each lifetime. ConfigError where a folder can't be read or written."""
        if agent.lasting_memory is None:
            raise ConfigError(
                "this agent has no lasting memory to load or to save: memory.lasting is None"
            )
        if save:
            checkpoint.check_replaceable(Path(save))
        self.folder, self.seeds = save, seeds
        self.controller = agent.controller(len(seeds), tensors=True)  # of all lifetimes
        if load:
            self.controller.load_memory(load)
        self.first = self.controller.episode.lasting.memories
        self.last: dict[int, Memories] = {}  # of one environment each, by the seed of the lifetime

    def policy(
        self, make_policy: PolicyFactory, controller: Controller, per_env: int
    ) -> PolicyFactory:
        """The policy of a controller in a batch of lifetimes, each of so many episodes. One ends
        when the policy takes up the end of its last episode: in the step that resets it."""
        batch_seed, num_ended = 0, torch.zeros(0)

        def make_with_memory(start: EpisodeStart, seed: int) -> ActFn:
            nonlocal batch_seed, num_ended
            act_fn = make_policy(start, seed)
            if start.reset_mask is None:
                batch_seed, num_ended = seed, torch.zeros(start.env.num_envs)
                if self.first is not None:
                    row = self.seeds.index(seed)
                    rows = torch.arange(row, row + start.env.num_envs)
                    self._set(controller, self.first.select(rows))
                return act_fn
            num_ended = num_ended + start.reset_mask
            ended = start.reset_mask & (num_ended == per_env)
            memories = controller.episode.lasting.memories
            assert memories is not None
            for row in ended.nonzero().flatten():
                self.last[batch_seed + int(row)] = memories.select(row[None])
            return act_fn

        return make_with_memory

    def save(self) -> None:
        """Writes the folder, if there is one, whole or not at all."""
        if self.folder:
            rows = [self.last[seed] for seed in self.seeds]
            memories = Memories(*map(torch.cat, zip(*rows, strict=True)))
            self._set(self.controller, memories)
            self.controller.save_memory(self.folder)

    @staticmethod
    def _set(controller: Controller, memories: Memories) -> None:
        controller.episode = controller.episode._replace(lasting=LastingMemory(memories))
