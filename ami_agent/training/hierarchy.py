"""Training of the levels above the lowest: a hierarchical JEPA, or a graph of landmarks."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Annotated, NamedTuple

import torch
from torch import Tensor, nn

from ami_agent.adapters.env import EnvConfig
from ami_agent.agent import Agent
from ami_agent.training import representation_losses
from ami_agent.training.base import (
    SGDStage,
    SGDStageRun,
    Stage,
    StageRun,
    ValidSteps,
    check_window,
    encode_buffer,
    states_from_steps,
)
from ami_agent.training.chance_steps import split_at_chance
from ami_agent.training.critics import LagrangeMultiplier, critic_of, quasimetric_loss
from ami_agent.training.optim import OptimConfig
from ami_agent.training.precision import full
from ami_agent.user_components import class_name
from modules.actor.planning.risk import latin_hypercube
from modules.actor.subgoals import LandmarkGraph, LandmarkGraphConfig
from modules.actor.subgoals.landmark_graph import CHUNK_SIZE, RecordedChance
from modules.cost.goal_critic import Quasimetric
from modules.memory.replay_storage import OBS_ONLY
from modules.types import HORIZON, WEIGHT, ConfigError
from modules.world_model.hjepa import HierarchicalJEPA, HierarchicalJEPAConfig, JEPALevel

if TYPE_CHECKING:
    from ami_agent.config import Config

LEVEL_TERMS = ("prediction", "variance", "covariance", "kl", "latent_prior_nll", "action_prior_nll")


class LevelWindow(NamedTuple):
    """Windows of steps of one level. `valid`: which of them count; all, where it is None."""

    states: Tensor  # [B, T + 1, D]
    actions: Tensor  # [B, T, A]
    valid: Tensor | None = None  # [B, T] bool


def valid_macro_steps(valid: Tensor | None, num_steps: int) -> Tensor | None:
    """The mask of the macro-steps `[B, T]` all of whose `num_steps` steps are valid
    `[B, T * num_steps]`."""
    return None if valid is None else valid.unflatten(1, (-1, num_steps)).all(2)


def hjepa_level_loss(
    level: JEPALevel, multiplier: LagrangeMultiplier, window: LevelWindow,
    generator: torch.Generator, *, max_distance: float,
) -> tuple[dict[str, Tensor], LevelWindow]:  # fmt: skip
    """The loss of one level, whose macro-steps are `k = level.num_steps` steps of the level below.

    From a window of T k steps of that level it learns to predict, the prior of macro-actions, and,
    where it has a distance of its own, the distance in macro-steps. Returns the terms, and the
    window of T macro-steps: the level's own states `[B, T + 1, D]` and macro-actions
    `[B, T, M]`."""
    states, actions, valid = window
    valid = valid_macro_steps(valid, level.num_steps)
    level_states = full(level.state_encoder(states[:, :: level.num_steps]))
    macro_actions = level.encode_actions(actions)
    model = level.world_model
    noise_shape = (*macro_actions.shape[:2], model.latent.noise_dim)
    noise = torch.rand(noise_shape, generator=generator).to(level_states)
    valid_steps, valid_states = ValidSteps(valid), ValidSteps(states_from_steps(valid))
    states_before = valid_steps(level_states[:, :-1])
    states_after = valid_steps(level_states[:, 1:])
    valid_macros = valid_steps(macro_actions)
    if not len(states_before):  # no macro-step of this batch is valid
        zero = 0 * (level_states.sum() + macro_actions.sum())
        return dict.fromkeys(LEVEL_TERMS, zero), LevelWindow(level_states, macro_actions, valid)
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
            level.distance, multiplier, *pairs, max_distance=max_distance
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
    return terms, LevelWindow(level_states, macro_actions, valid)


@dataclass(frozen=True, kw_only=True)
class TrainHierarchy(SGDStage):
    """Trains the levels of a HierarchicalJEPA, all at once, on states of the lowest level: each
    level learns to predict over its own macro-steps, the prior of macro-actions, and the distance
    to goals. The gradient of a level reaches the states and macro-actions of the levels below."""

    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(steps=1000, batch_size=128, lr=2e-3)
    )
    length: Annotated[int, HORIZON] = 3
    """Macro-steps of the top level that are predicted, T."""
    max_distance: Annotated[float, (0.0, 1e6)] = 12.0
    """Macro-steps beyond which distances are hardly pushed further."""
    prediction: Annotated[float, WEIGHT] = 10.0
    """Weight of the prediction; the weights of the priors and of the distance are 1."""
    variance: Annotated[float, WEIGHT] = 4.0
    """Weight of the variance of states."""
    covariance: Annotated[float, WEIGHT] = 0.5
    """Weight of the covariance of states."""
    kl: Annotated[float, WEIGHT] = 0.3
    """Weight of the information in a level's latent variable, where it has one. If it is too low,
    the latent variable carries what the macro-action should, which then no longer decides where a
    macro-step leads."""

    def check(self, config: Config, name: str) -> None:
        subgoals = config.actor.subgoals
        if not isinstance(subgoals, HierarchicalJEPAConfig):
            raise _wrong_subgoals(config, name, "HierarchicalJEPA")
        window, episode_steps = self.length * prod(subgoals.steps_per_level), config.collect.steps
        if window > episode_steps:
            per_level = " x ".join(map(str, subgoals.steps_per_level))
            raise ConfigError(
                f"{name}.length {self.length} with {per_level} steps per level takes {window} "
                f"steps, but an episode has {episode_steps}: nothing for the top level to learn "
                "from"
            )

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        assert isinstance(agent.subgoals, HierarchicalJEPA)
        return HierarchyRun(self, agent, agent.subgoals, seed)


def _wrong_subgoals(config: Config, name: str, trained: str) -> ConfigError:
    kind = class_name(config.actor.subgoals)
    return ConfigError(
        f"the stage {name} trains a {trained}, and subgoals is {kind}: it must be "
        f"{trained}, or leave the stage out (on the command line, --without hierarchy)"
    )


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
        self.window_steps = stage.length * macro_step
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
        self.log_drawn_fraction(self.buffer, "the levels above", self.window_steps)

    def _loss(self, generator: torch.Generator) -> dict[str, Tensor]:
        batch = self.buffer.sample(self.stage.optim.batch_size, self.window_steps, generator)
        window = LevelWindow(batch.states, batch.actions.to(batch.states), batch.valid)
        all_terms: dict[str, Tensor] = {}
        for index, (level_planner, multiplier) in enumerate(
            zip(self.levels.level_planners, self.multipliers, strict=True)
        ):
            assert isinstance(multiplier, LagrangeMultiplier)
            terms, window = hjepa_level_loss(
                level_planner.level, multiplier, window, generator,
                max_distance=self.stage.max_distance,
            )  # fmt: skip
            all_terms |= {f"{name} {index + 1}": term for name, term in terms.items()}
        return all_terms

    @torch.no_grad()
    def finish(self) -> None:
        """Fills the memory bank, from which subgoals in the lowest level's states are taken."""
        generator = torch.Generator().manual_seed(self.seed)
        bank = self.levels.memory_bank
        bank.copy_(self.buffer.sample(len(bank), 1, generator).states[:, 0])


@dataclass(frozen=True, kw_only=True)
class SelectLandmarks(Stage):
    """Chooses the landmarks of a LandmarkGraph among recorded states by farthest-point sampling
    (Gonzalez 1985): each is the farthest from those before, there and back by the goal critic."""

    num_candidates: Annotated[int, (1, 10_000_000)] = 6000
    """States to choose from."""
    num_windows: Annotated[int, (1, 10_000_000)] = 3000
    """Recorded windows from which the graph knows which of its edges were travelled."""
    length: Annotated[int, HORIZON] = 8
    """Steps of such a recorded window."""
    num_visited: Annotated[int, (1, 10_000_000)] = 100_000
    """Recorded states, at most, of which a graph with stochastic edges takes how often the agent
    was at each landmark; chance events count all."""

    def check(self, config: Config, name: str) -> None:
        subgoals = config.actor.subgoals
        if not isinstance(subgoals, LandmarkGraphConfig):
            raise _wrong_subgoals(config, name, "LandmarkGraph")
        if config.cost.goal_critic is None:
            raise ConfigError("subgoals LandmarkGraph needs the goal critic for distances")
        self.check_graph(subgoals, config, name)

    def check_graph(self, graph: LandmarkGraphConfig, config: Config, name: str) -> None:
        """Raises ConfigError where no such graph can be chosen from these recorded steps."""
        if self.num_candidates < graph.num_landmarks:
            raise ConfigError(
                f"{name}.num_candidates is {self.num_candidates}, but "
                f"{graph.num_landmarks} landmarks are to be chosen from them"
            )
        check_window(f"{name}.length", self.length, config.collect.steps)

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        assert isinstance(agent.subgoals, LandmarkGraph)
        return LandmarkSelector(self, agent, agent.subgoals, seed)


class LandmarkSelector(StageRun):
    """Chooses one landmark per update. A run that is resumed chooses anew from the first."""

    def __init__(
        self, stage: SelectLandmarks, agent: Agent, graph: LandmarkGraph, seed: int
    ) -> None:
        self.graph, self.distance, self.model = graph, critic_of(agent), agent.world_model
        self.total = graph.config.num_landmarks
        generator = torch.Generator().manual_seed(seed)
        buffer = encode_buffer(agent)
        self.recorded: RecordedChance | None = None
        with torch.no_grad():
            sample = buffer.sample(stage.num_candidates, 1, generator)
            self.states = sample.states[:, 0]
            self.actions = sample.actions[:, 0].to(self.states)
            if graph.config.stochastic_edges:
                num_steps, count = len(buffer), min(stage.num_visited, len(buffer))
                visited = buffer.sample(count, 1, generator, parts=OBS_ONLY).states[:, 0]
                buffer, events = split_at_chance(agent, buffer)
                self.recorded = RecordedChance(events[:, 0], events[:, 1], visited, num_steps)
            self.windows = buffer.sample(stage.num_windows, stage.length, generator).states
            self.embeddings = self.distance.embed(self.states)
        noise_dim = self.model.latent.noise_dim
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
        self.graph.build(self.states[chosen], self.windows, outcomes, self.recorded)

    def _outcomes(self, chosen: Tensor) -> Tensor:
        """Sampled next states of landmarks `[K]` after the recorded action, with the same noise for
        all: `[K, J, D]`; `[K, 1, D]` where the world model is deterministic."""
        actions = self.actions[chosen][:, None, None]
        rollout = self.model.imagine(self.states[chosen], actions, self.noise.to(self.states))
        return rollout.states[:, :, 1]
