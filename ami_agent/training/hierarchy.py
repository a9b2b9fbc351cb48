"""The upper levels of the hierarchy learn what there is between start and goal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ami_agent.adapters.env import EnvConfig
from ami_agent.losses import LagrangeMultiplier, hjepa_level_loss, valid_macro_steps
from ami_agent.training.base import OfflineStage, SGDStageRun, StageRun, encode_buffer
from ami_agent.training.goal_critic import critic_of
from ami_agent.training.optim import OptimConfig
from modules.actor.planning.risk import latin_hypercube
from modules.actor.subgoals import LandmarkGraph
from modules.actor.subgoals.landmark_graph import CHUNK_SIZE
from modules.types import HORIZON, WEIGHT, ConfigError, validate_ranges
from modules.world_model.hjepa import HierarchicalJEPA

if TYPE_CHECKING:
    from ami_agent.agent import Agent


@dataclass(frozen=True, kw_only=True)
class TrainHierarchy(OfflineStage):
    """The levels above learn from states as the lowest perceives them, all at once: each to predict
    in its own strides, which macro-actions life contains, and how far it is to goals."""

    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(steps=1000, batch_size=128, lr=2e-3)
    )
    length: int = 3
    """Steps of the top level that are unrolled, T."""
    end_to_end: bool = True
    """Whether what a level learns reaches the states and macro-actions of those below it."""
    max_distance: float = 12.0
    """Distances much beyond this, in strides, are not pushed further."""
    epsilon: float = 0.05
    prediction: float = 10.0
    variance: float = 4.0
    covariance: float = 0.5
    kl: float = 0.3
    """Weights, beside those of prior and distance, which are 1; that of information is for what a
    level's latent variable tells, where it has one: told cheaply, it would tell what the
    macro-action should, and whoever draws it would have no say in where a stride leads."""

    def __post_init__(self) -> None:
        validate_ranges(
            self, length=HORIZON, max_distance=(0.0, 1e6), epsilon=(0.0, 1e3), prediction=WEIGHT
        )
        validate_ranges(self, variance=WEIGHT, covariance=WEIGHT, kl=WEIGHT)

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        if not isinstance(agent.subgoals, HierarchicalJEPA):
            raise ConfigError("ascend teaches levels above: hierarchy must be HierarchicalJEPA")
        return HierarchyRun(self, agent, agent.subgoals, seed)

    def steps(self, strides: Sequence[int]) -> int:
        """Steps of life that one window spans."""
        return self.length * prod(strides)


class HierarchyRun(SGDStageRun):
    """All levels above, and the price that each pays for steps that are too far."""

    def __init__(
        self, stage: TrainHierarchy, agent: Agent, levels: HierarchicalJEPA, seed: int
    ) -> None:
        self.stage, self.levels = stage, levels
        self.buffer = encode_buffer(agent)
        top_level_steps, longest_episode = (
            prod(levels.config.steps_per_level),
            agent.replay_buffer.max_window(),
        )
        if longest_episode < top_level_steps:
            raise ConfigError(
                f"one stride of the top level takes {top_level_steps} steps, but no episode has more than "
                f"{longest_episode}: --subgoals.steps-per-level must be shorter"
            )
        self.multipliers = nn.ModuleList([LagrangeMultiplier() for _ in levels.level_planners]).to(
            agent.device
        )
        self.seed = seed
        weights = {
            f"{name} {index + 1}": getattr(stage, name)
            for name in ("prediction", "variance", "covariance", "kl")
            for index in range(len(levels.level_planners))
        }
        trained = nn.ModuleList([levels.levels, self.multipliers])
        super().__init__(trained, self._loss, stage.optim, weights=weights, seed=seed)
        self.log_drawn_fraction(
            self.buffer, "the levels above", stage.steps(levels.config.steps_per_level)
        )

    def _loss(self, generator: torch.Generator) -> dict[str, Tensor]:
        stage = self.stage
        window_steps = stage.steps(self.levels.config.steps_per_level)
        batch = self.buffer.sample(stage.optim.batch_size, window_steps, generator)
        states, actions, valid = batch.states, batch.actions.to(batch.states), batch.valid
        all_terms: dict[str, Tensor] = {}
        for index, (level_planner, multiplier) in enumerate(
            zip(self.levels.level_planners, self.multipliers, strict=True)
        ):
            assert isinstance(multiplier, LagrangeMultiplier)
            valid = valid_macro_steps(valid, level_planner.level.num_steps)
            terms, states, actions = hjepa_level_loss(
                level_planner.level, multiplier, states, actions, generator, max_distance=stage.max_distance, epsilon=stage.epsilon,
                valid=valid,
            )  # fmt: skip
            if not stage.end_to_end:
                states, actions = states.detach(), actions.detach()
            all_terms |= {f"{name} {index + 1}": term for name, term in terms.items()}
        return all_terms

    @torch.no_grad()
    def finish(self) -> None:
        """What subgoals are looked up among."""
        generator = torch.Generator().manual_seed(self.seed)
        bank = self.levels.memory_bank
        bank.copy_(self.buffer.sample(len(bank), 1, generator).states[:, 0])


@dataclass(frozen=True, kw_only=True)
class SelectLandmarks(OfflineStage):
    """Landmarks are chosen among remembered states: each the farthest from all before, there and
    back as the critic has it (Gonzalez 1985), so that they are spread over all that was lived."""

    num_candidates: int = 6000
    """States there are to choose from."""
    num_windows: int = 3000
    """Stretches of life that tell which hops were made."""
    length: int = 8
    """Steps of each."""

    def __post_init__(self) -> None:
        validate_ranges(
            self, num_candidates=(1, 10_000_000), num_windows=(1, 10_000_000), length=HORIZON
        )

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        if not isinstance(agent.subgoals, LandmarkGraph):
            raise ConfigError("survey is for a hierarchy of landmarks: it must be NoLesson")
        return LandmarkSelector(self, agent, agent.subgoals, seed)


class LandmarkSelector:
    """Chooses one landmark at every step; it begins anew when it is interrupted."""

    eval_mode_due = ""

    def __init__(
        self, stage: SelectLandmarks, agent: Agent, graph: LandmarkGraph, seed: int
    ) -> None:
        self.graph, self.distance, self.model = graph, critic_of(agent), agent.world_model
        self.total, self.step = graph.config.num_landmarks, 0
        generator = torch.Generator().manual_seed(seed)
        buffer = encode_buffer(agent)
        with torch.no_grad():
            sample = buffer.sample(stage.num_candidates, 1, generator)
            self.states = sample.states[:, 0]
            self.actions = sample.actions[:, 0].to(self.states)  # memory may lie elsewhere
            self.windows = buffer.sample(stage.num_windows, stage.length, generator).states
            self.embeddings = self.distance.embed(self.states)
        noise_dim = self.model.level(0).latent.noise_dim
        self.noise = latin_hypercube(
            graph.config.num_outcomes if noise_dim else 1, 1, noise_dim, generator
        )
        self.drawn_fraction = buffer.fraction(stage.length)
        self.min_distance = self.states.new_full((stage.num_candidates,), torch.inf)
        self.chosen: list[Tensor] = []

    @torch.no_grad()
    def update(self) -> dict[str, Tensor]:
        index = self.min_distance.argmax()
        embedding = self.embeddings[index]
        distance_to = self.distance.from_embeddings(embedding, self.embeddings)
        distance_from = self.distance.from_embeddings(self.embeddings, embedding)
        self.min_distance = torch.minimum(
            self.min_distance, torch.maximum(distance_to, distance_from)
        )
        self.chosen.append(index)
        self.step += 1
        return {"max_distance": self.min_distance.max(), "drawn_fraction": self.drawn_fraction}

    @torch.no_grad()
    def finish(self) -> None:
        chosen = torch.stack(self.chosen)
        futures = torch.cat([self._futures(part) for part in chosen.split(CHUNK_SIZE)])
        self.graph.build(self.states[chosen], self.windows, futures)

    def _futures(self, chosen: Tensor) -> Tensor:
        """Where landmarks `[K]` may lead when what was done there is done again, `[K, J, D]`, with
        the same chance for all; `[K, 1, D]` where all can be known."""
        actions = self.actions[chosen][:, None, None]
        ahead = self.model.imagine(self.states[chosen], actions, self.noise.to(self.states))
        return ahead.states[:, :, 1]

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Begins anew."""
