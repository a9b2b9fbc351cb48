"""Training of the levels above the lowest: a hierarchical JEPA, or a graph of landmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ami_agent.adapters.env import EnvConfig
from ami_agent.training import representation_losses
from ami_agent.training.base import OfflineStage, SGDStageRun, StageRun, encode_buffer
from ami_agent.training.goal_critic import LagrangeMultiplier, critic_of, quasimetric_loss
from ami_agent.training.masking import ValidSteps, states_from_steps, valid_macro_steps
from ami_agent.training.optim import OptimConfig
from modules.actor.planning.risk import latin_hypercube
from modules.actor.subgoals import LandmarkGraph
from modules.actor.subgoals.landmark_graph import CHUNK_SIZE
from modules.cost.quasimetric import Quasimetric
from modules.types import HORIZON, WEIGHT, ConfigError, validate_ranges
from modules.world_model.hjepa import HierarchicalJEPA, JEPALevel

if TYPE_CHECKING:
    from ami_agent.agent import Agent

LEVEL_TERMS = ("prediction", "variance", "covariance", "kl", "latent_prior_nll", "action_prior_nll")


def hjepa_level_loss(
    level: JEPALevel, multiplier: LagrangeMultiplier, states: Tensor, actions: Tensor,
    generator: torch.Generator, *, max_distance: float, epsilon: float, valid: Tensor | None = None,
) -> tuple[dict[str, Tensor], Tensor, Tensor]:  # fmt: skip
    """The loss of one level, whose macro-steps are `k = level.num_steps` steps of the level below.

    From the states `[B, T k + 1, D]` and actions `[B, T k, A]` of that level it learns to predict,
    the prior of macro-actions, and, where it has a distance of its own, the distance in
    macro-steps. Returns the terms, and the level's own states `[B, T + 1, D]` and macro-actions
    `[B, T, M]`. `valid` `[B, T]`: the macro-steps of padded windows that count."""
    level_states = level.state_encoder(states[:, :: level.num_steps])
    macro_actions = level.encode_actions(actions)
    model = level.world_model.level(0)
    noise_shape = (*macro_actions.shape[:2], model.latent.noise_dim)
    noise = torch.rand(noise_shape, generator=generator).to(level_states)
    valid_steps, valid_states = ValidSteps(valid), ValidSteps(states_from_steps(valid))
    states_before = valid_steps(level_states[:, :-1])
    states_after = valid_steps(level_states[:, 1:])
    valid_macros = valid_steps(macro_actions)
    if not len(states_before):  # no macro-step of this batch is valid
        zero = 0 * (level_states.sum() + macro_actions.sum())
        return dict.fromkeys(LEVEL_TERMS, zero), level_states, macro_actions
    posterior = model.latent.posterior(
        states_before, valid_macros, states_after, valid_steps(noise), model.dynamics
    )
    action_latents = valid_steps.scatter(posterior.action_latent)
    predicted = model.unroll(level_states[:, 0], action_latents)[:, 1:]
    all_states = valid_states(level_states).flatten(0, -2)
    distance_terms = {}
    if isinstance(level.distance, Quasimetric):  # not the goal critic's
        pairs = (states_before.detach(), states_after.detach())
        if valid is None:
            pairs = (pairs[0].transpose(0, 1), pairs[1].transpose(0, 1))  # [T, B, D]
        distance_terms = quasimetric_loss(
            level.distance, multiplier, *pairs, max_distance=max_distance, epsilon=epsilon
        )
    action_prior = level.action_prior(states_before.detach())
    terms = {
        "prediction": representation_losses.prediction(valid_steps(predicted), states_after),
        "variance": representation_losses.variance(all_states),
        "covariance": representation_losses.covariance(all_states),
        "kl": posterior.kl,
        "latent_prior_nll": posterior.prior_nll,
        "action_prior_nll": action_prior.nll(valid_macros.detach()).mean(),
        **distance_terms,
    }
    return terms, level_states, macro_actions


@dataclass(frozen=True, kw_only=True)
class TrainHierarchy(OfflineStage):
    """Trains the levels of a HierarchicalJEPA, all at once, on states of the lowest level: each
    level learns to predict over its own macro-steps, the prior of macro-actions, and the distance
    to goals."""

    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(steps=1000, batch_size=128, lr=2e-3)
    )
    length: int = 3
    """Macro-steps of the top level that are predicted, T."""
    end_to_end: bool = True
    """Whether the gradient of a level reaches the states and macro-actions of the levels below."""
    max_distance: float = 12.0
    """Macro-steps beyond which distances are hardly pushed further."""
    epsilon: float = 0.05
    """Root mean square by which recorded macro-steps may exceed a distance of 1."""
    prediction: float = 10.0
    """Weight of the prediction; those of the priors and of the distance are 1."""
    variance: float = 4.0
    """Weight of the variance of states."""
    covariance: float = 0.5
    """Weight of the covariance of states."""
    kl: float = 0.3
    """Weight of the information in a level's latent variable, where it has one. If it is too low,
    the latent variable carries what the macro-action should, which then no longer decides where a
    macro-step leads."""

    def __post_init__(self) -> None:
        validate_ranges(
            self, length=HORIZON, max_distance=(0.0, 1e6), epsilon=(0.0, 1e3), prediction=WEIGHT
        )
        validate_ranges(self, variance=WEIGHT, covariance=WEIGHT, kl=WEIGHT)

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        if not isinstance(agent.subgoals, HierarchicalJEPA):
            raise ConfigError("train_hierarchy trains levels: subgoals must be HierarchicalJEPA")
        return HierarchyRun(self, agent, agent.subgoals, seed)

    def steps(self, steps_per_level: Sequence[int]) -> int:
        """Steps of the lowest level in one window."""
        return self.length * prod(steps_per_level)


class HierarchyRun(SGDStageRun):
    """Trains all levels, each with its own Lagrange multiplier."""

    def __init__(
        self, stage: TrainHierarchy, agent: Agent, levels: HierarchicalJEPA, seed: int
    ) -> None:
        self.stage, self.levels, self.seed = stage, levels, seed
        self.buffer = encode_buffer(agent)
        macro_step = prod(levels.config.steps_per_level)
        longest_episode = agent.replay_buffer.max_window()
        if longest_episode < macro_step:
            raise ConfigError(
                f"one macro-step of the top level takes {macro_step} steps, but no recorded episode"
                f" has more than {longest_episode}: make --subgoals.steps-per-level shorter"
            )
        num_levels = len(levels.level_planners)
        self.multipliers = nn.ModuleList([LagrangeMultiplier() for _ in range(num_levels)])
        self.multipliers.to(agent.device)
        weights = {
            f"{name} {index + 1}": getattr(stage, name)
            for name in ("prediction", "variance", "covariance", "kl")
            for index in range(num_levels)
        }
        trained = nn.ModuleList([levels.levels, self.multipliers])
        super().__init__(trained, self._loss, stage.optim, weights=weights, seed=seed)
        window_steps = stage.steps(levels.config.steps_per_level)
        self.log_drawn_fraction(self.buffer, "the levels above", window_steps)

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
            level = level_planner.level
            valid = valid_macro_steps(valid, level.num_steps)
            terms, states, actions = hjepa_level_loss(
                level, multiplier, states, actions, generator, max_distance=stage.max_distance,
                epsilon=stage.epsilon, valid=valid,
            )  # fmt: skip
            if not stage.end_to_end:
                states, actions = states.detach(), actions.detach()
            all_terms |= {f"{name} {index + 1}": term for name, term in terms.items()}
        return all_terms

    @torch.no_grad()
    def finish(self) -> None:
        """Fills the memory bank, from which subgoals in the lowest level's states are taken."""
        generator = torch.Generator().manual_seed(self.seed)
        bank = self.levels.memory_bank
        bank.copy_(self.buffer.sample(len(bank), 1, generator).states[:, 0])


@dataclass(frozen=True, kw_only=True)
class SelectLandmarks(OfflineStage):
    """Chooses the landmarks of a LandmarkGraph among recorded states by farthest-point sampling
    (Gonzalez 1985): each is the farthest from those before, there and back by the goal critic."""

    num_candidates: int = 6000
    """States to choose from."""
    num_windows: int = 3000
    """Recorded windows from which the graph knows which of its edges were travelled."""
    length: int = 8
    """Steps of such a window."""

    def __post_init__(self) -> None:
        validate_ranges(
            self, num_candidates=(1, 10_000_000), num_windows=(1, 10_000_000), length=HORIZON
        )

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        if not isinstance(agent.subgoals, LandmarkGraph):
            raise ConfigError("select_landmarks chooses landmarks: subgoals must be LandmarkGraph")
        return LandmarkSelector(self, agent, agent.subgoals, seed)


class LandmarkSelector:
    """Chooses one landmark per update. A run that is resumed chooses anew from the first."""

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
            self.actions = sample.actions[:, 0].to(self.states)
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
        outcomes = torch.cat([self._outcomes(part) for part in chosen.split(CHUNK_SIZE)])
        self.graph.build(self.states[chosen], self.windows, outcomes)

    def _outcomes(self, chosen: Tensor) -> Tensor:
        """Sampled next states of landmarks `[K]` after the recorded action, with the same noise for
        all: `[K, J, D]`; `[K, 1, D]` where the world model is deterministic."""
        actions = self.actions[chosen][:, None, None]
        rollout = self.model.imagine(self.states[chosen], actions, self.noise.to(self.states))
        return rollout.states[:, :, 1]

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing is saved."""
