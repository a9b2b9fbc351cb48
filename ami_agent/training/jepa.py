"""Training of perception and world model: a joint-embedding predictive architecture (JEPA)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn

from ami_agent.adapters.env import EnvConfig
from ami_agent.agent import Agent
from ami_agent.training import representation_losses
from ami_agent.training.base import (
    SGDStage,
    SGDStageRun,
    StageRun,
    ValidSteps,
    check_window,
    encode_buffer,
    states_from_steps,
    task_modality_sets,
)
from ami_agent.training.chance_steps import chance_threshold, replace_chance
from ami_agent.training.collect import CollectWithPlanner
from ami_agent.training.distributed import split
from ami_agent.training.hindsight import SamplesTrajectories
from ami_agent.training.optim import OptimConfig
from ami_agent.training.precision import full
from ami_agent.training.representation_losses import (
    OPTIONAL_TERMS,
    LossWeights,
    directions,
    per_location,
)
from modules.memory.replay_buffer import Parts
from modules.memory.short_term import ShortTermMemory, unroll_memory
from modules.perception.target_encoder import (
    EMATarget,
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
)
from modules.world_model.jepa import WorldModel

if TYPE_CHECKING:
    from ami_agent.config import Config

NUM_PROTOTYPES = 64
NO_PROTOTYPES = torch.empty(0)


@dataclass(frozen=True, eq=False)
class JEPALoss:
    """Joint-embedding prediction over several steps, and what keeps it from collapsing.

    The variance is taken of every dimension over the batch, so that in a map every location tells
    layouts apart; the covariance, and both within an episode, of every channel over all
    locations."""

    perceive: Callable[[Observation], Tensor]
    """Observations `[N, *O]` -> features `[N, D]`."""
    target_fn: Callable[[Observation, Tensor], Tensor]
    """Observations and their features -> target features, each `[N, D]`."""
    short_term_memory: ShortTermMemory
    model: WorldModel
    channels: int
    group_size: int = 1
    """Windows come in groups of so many from one episode, whose mean the terms named `_within`
    subtract."""
    context_steps: int = 0
    """From each of the first `context_steps + 1` states, as many steps are predicted as the window
    has beyond the context."""
    left_out: Collection[str] = OPTIONAL_TERMS
    """Terms that are not computed. Those of the model's own predictions always are."""
    prototypes: Tensor = NO_PROTOTYPES
    """`[K, D]`"""
    exclude_chance: bool = False
    """Whether predictions have no error from a step on in which chance moved the agent."""

    def __call__(self, trajectory: Trajectory, generator: torch.Generator) -> dict[str, Tensor]:
        """The terms by name, of windows `[B, T, ..]`. The latent variable of a step is inferred
        from the states before and after it. No term counts what lies beyond the valid steps of a
        padded window."""
        actions, channels, memory = trajectory.actions, self.channels, self.short_term_memory
        shape = (actions.shape[0], actions.shape[1] + 1)
        flat_obs = tree_map(lambda part: part.flatten(0, 1), trajectory.obs)
        features = self.perceive(flat_obs)
        states = full(unroll_memory(memory, features.unflatten(0, shape)))  # [B, T + 1, D]
        target_features = self.target_fn(flat_obs, features)
        # targets without gradient train no short-term memory either
        with torch.set_grad_enabled(target_features.requires_grad):
            targets = full(unroll_memory(memory, target_features.unflatten(0, shape)))
        valid = states_from_steps(trajectory.valid)
        valid_states, valid_steps = ValidSteps(valid), ValidSteps(trajectory.valid)
        valid_pairs = ValidSteps(None if trajectory.valid is None else trajectory.valid[:, 1:])
        inverse: Any = self.model.dynamics.inverse
        inferred_actions, centered_features = actions, states
        if "inverse_dynamics" not in self.left_out:
            inferred_actions = inverse(valid_steps(states[:, :-1]), valid_steps(states[:, 1:]))
        all_states = valid_states(states)
        all_features = per_location(all_states, channels)
        if not {"variance_within", "covariance_within"} <= set(self.left_out):
            centered = representation_losses.center_within_episode(states, self.group_size, valid)
            centered_features = per_location(valid_states(centered), channels)
        terms, predicted, target = _unroll_terms(
            self.model, trajectory._replace(obs=states), targets, generator, self.context_steps,
            self.exclude_chance,
        )  # fmt: skip
        # terms that compare two views: the last state of a window as predicted and as encoded
        optional: dict[str, Callable[[], Tensor]] = {
            "barlow_twins": lambda: representation_losses.barlow_twins(
                per_location(predicted, channels), per_location(target, channels)
            ),
            "sigreg": lambda: representation_losses.sigreg(
                all_features, directions(channels, generator).to(all_features)
            ),
            "info_nce": lambda: representation_losses.info_nce(predicted, target),
            "margin": lambda: representation_losses.margin(predicted, target),
            "hinge": lambda: representation_losses.hinge(predicted, target),
            "square_exponential": lambda: representation_losses.square_exponential(
                predicted, target
            ),
            "straightness": lambda: representation_losses.straightness(states, valid_pairs),
            "prototypes": lambda: representation_losses.prototypes(
                predicted, target, self.prototypes
            ),
            "byol": lambda: representation_losses.byol(predicted, target),
            "variance": lambda: representation_losses.variance(all_states.flatten(0, -2)),
            "covariance": lambda: representation_losses.covariance(all_features),
            "variance_within": lambda: representation_losses.variance(centered_features),
            "covariance_within": lambda: representation_losses.covariance(centered_features),
            "temporal_similarity": lambda: representation_losses.temporal_similarity(
                states, valid_steps
            ),
            "inverse_dynamics": lambda: representation_losses.inverse_dynamics(
                inferred_actions, valid_steps(actions)
            ),
        }
        return terms | {n: term() for n, term in optional.items() if n not in self.left_out}


def _unroll_terms(
    model: WorldModel, trajectory: Trajectory, targets: Tensor, generator: torch.Generator,
    context_steps: int, exclude_chance: bool = False,
) -> tuple[dict[str, Tensor], Tensor, Tensor]:  # fmt: skip
    """Unrolls the model from each of the first `context_steps + 1` states of a trajectory. Returns
    the terms of the predicted states and interoception, of the latent variable and of the
    ensemble's one-step predictions, and the last state of every window as predicted and as encoded,
    `[N, D]`."""
    states, actions, valid = trajectory.states, trajectory.actions, trajectory.valid
    length = actions.shape[1] - context_steps
    interoception = model.interoception_head.subtract_offset(trajectory.interoception)
    noise_shape = (*actions.shape[:2], model.latent.noise_dim)
    noise = torch.rand(noise_shape, generator=generator).to(states)
    valid_steps = ValidSteps(valid)
    states_before, states_after = valid_steps(states[:, :-1]), targets[:, 1:]
    posterior = model.latent.posterior(
        states_before, valid_steps(actions), valid_steps(states_after), valid_steps(noise),
        model.dynamics,
    )  # fmt: skip
    action_latents = valid_steps.scatter(posterior.action_latent)  # [B, T, A + Z]
    window_actions, window_targets, window_signals = (
        part.unfold(1, length, 1).movedim(-1, 2).flatten(0, 1)
        for part in (action_latents, states_after, interoception)
    )  # [B * (context_steps + 1), length, ..]
    predicted = split(model.unroll, states[:, : context_steps + 1].flatten(0, 1), window_actions)
    window_valid = None if valid is None else valid.unfold(1, length, 1).flatten(0, 1)
    valid_of_window, last_of_window = ValidSteps(window_valid), last_valid(window_valid)
    current, following = states_before.detach(), valid_steps(states_after).detach()
    motion = following - current
    if exclude_chance:
        threshold = chance_threshold(motion)
        window_targets = replace_chance(predicted[:, 1:], window_targets, threshold)
        motion = motion.masked_fill((motion.abs() > threshold).any(-1, keepdim=True), 0)
    # three slices, not one shared tensor: the result depends on the order of summed gradients
    predicted_signals = model.interoception_head.predict(
        valid_of_window(predicted[:, :-1]),
        valid_of_window(window_actions[..., : model.action_dim]),
        valid_of_window(predicted[:, 1:]),
    )
    terms = {
        "prediction": representation_losses.prediction(
            valid_of_window(predicted[:, 1:]), valid_of_window(window_targets)
        ),
        "scaled_prediction": representation_losses.scaled_prediction(
            valid_of_window(predicted[:, 1:]), valid_of_window(window_targets), motion
        ),
        "interoception": representation_losses.interoception(
            predicted_signals,
            valid_of_window(window_signals),
            model.interoception_head.error_scale(),
        ),
        "ensemble": representation_losses.ensemble(
            model.ensemble(current, valid_steps(actions)), following - current
        ),
        "kl": posterior.kl,
        "prior_nll": posterior.prior_nll,
    }
    return terms, last_of_window(predicted[:, 1:]), last_of_window(window_targets)


def unroll_loss(
    model: WorldModel, trajectory: Trajectory, generator: torch.Generator
) -> dict[str, Tensor]:
    """The prediction terms of `JEPALoss` where observations are states already, `[B, T + 1, D]`."""
    return _unroll_terms(model, trajectory, trajectory.states, generator, 0)[0]


def last_valid(valid: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Selects, of `[B, T, ...]`, the last valid step of each window that has a valid one."""
    if valid is None:
        return lambda part: part[:, -1]
    rows = valid[:, 0].nonzero().squeeze(1)
    step = valid[rows].sum(1) - 1
    return lambda part: part[rows.to(part.device), step.to(part.device)]


@dataclass(frozen=True, kw_only=True)
class TrainJEPA(SGDStage):
    """Trains perception and world model together: they predict in representation space, and are
    kept from collapsing."""

    weights: LossWeights = field(default_factory=LossWeights)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(steps=1200, batch_size=128))
    length: Annotated[int, HORIZON] = 8
    """Steps that are predicted from one state, T."""
    context_steps: Annotated[int, (0, HORIZON[1])] = 0
    """Recorded steps before these that the short-term memory reads. From each of them, T steps are
    predicted as well."""
    group_size: Annotated[int, BATCH] = 1
    """Windows of a batch that are drawn from one episode, for the statistics within an episode."""
    task_modality_prob: Annotated[float, FRACTION] = 0.0
    """Probability that a window is perceived with the modality weights of one of the tasks."""
    target_encoder: OnlineTargetConfig | EMATargetConfig | StopGradientTargetConfig = field(
        default_factory=OnlineTargetConfig
    )
    freeze_perception: bool = False
    """Whether perception stays as it is, for instance as the stage `pretrain` has trained it."""
    exclude_chance: bool = False
    """Whether the loss leaves out steps in which chance moved the agent, and what is predicted
    beyond them in a window. For chance that is rare but far-reaching, without a latent variable:
    motion more than twice as fast as 95 % of all steps is never learnt."""

    @property
    def window_steps(self) -> int:
        """Recorded steps that an update reads, of each window."""
        return self.context_steps + self.length

    def check(self, config: Config, name: str) -> None:
        check_window(f"{name}.length", self.window_steps, config.collect.steps)

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        return self.make_run(agent, agent.replay_buffer, seed)

    def make_run(self, agent: Agent, buffer: SamplesTrajectories, seed: int) -> SGDStageRun:
        """A run that trains on windows of this buffer."""
        perception = agent.perception
        if not agent.replay_buffer.fraction(self.window_steps):
            longest = max(1, agent.replay_buffer.max_window() - self.context_steps)
            raise ConfigError(
                f"the world model trains on windows of {self.window_steps} steps, but no recorded "
                f"episode has so many, and none has ended: set --train-jepa.length {longest} and, "
                f"for training online, --actor-critic.train-jepa.length {longest}"
            )
        adapt_units(agent, buffer)
        # after the units: an average of the encoder copies them once
        target_encoder = self.target_encoder.build(perception, self.optim.steps)
        left_out = [name for name, weight in asdict(self.weights).items() if not weight]
        initial_prototypes = directions(
            prod(agent.shape), torch.Generator().manual_seed(seed), NUM_PROTOTYPES
        )
        prototypes = nn.Parameter(initial_prototypes.to(agent.device))
        extra_parameters = nn.ParameterList([prototypes] if self.weights.prototypes else [])

        is_copy = isinstance(target_encoder, EMATarget)
        compute_targets = partial(split, target_encoder) if is_copy else target_encoder

        def loss(generator: torch.Generator) -> dict[str, Tensor]:
            batch = buffer.sample(
                self.optim.batch_size, self.window_steps, generator, self.group_size
            )
            batch, modality_weights = self._sample_modality_weights(
                agent, _to_device(batch, agent.device), generator
            )

            def perceive(obs: Observation) -> Tensor:
                with torch.set_grad_enabled(not self.freeze_perception):
                    return split(perception, obs, modality_weights)

            jepa_loss = JEPALoss(
                perceive,
                lambda obs, features: compute_targets(obs, features, modality_weights),
                agent.short_term_memory, agent.world_model, agent.shape[0], self.group_size,
                self.context_steps, left_out, prototypes, self.exclude_chance,
            )  # fmt: skip
            return jepa_loss(batch, generator)

        trained = [perception, agent.short_term_memory, agent.world_model, target_encoder]
        stage_run = SGDStageRun(
            nn.ModuleList([*trained, extra_parameters]), loss, self.optim,
            weights=asdict(self.weights), seed=seed,
            post_step=target_encoder.update,
        )  # fmt: skip
        stage_run.log_drawn_fraction(agent.replay_buffer, "the world model", self.window_steps)
        return stage_run

    def _sample_modality_weights(
        self, agent: Agent, batch: Trajectory, generator: torch.Generator
    ) -> tuple[Trajectory, dict[str, float | Tensor]]:
        """Weights by modality: those of a random task in some windows, `[B * (T + 1)]`, the agent's
        default in the rest. Windows with a task's weights have NaN as interoception: it can't be
        predicted from states in which modalities are suppressed."""
        default_weights = agent.configurator.default_modality_weights
        if not self.task_modality_prob:
            return batch, dict(default_weights)
        modality_sets = task_modality_sets(agent)
        num_windows, num_states = len(batch.actions), batch.actions.shape[1] + 1
        set_index = torch.randint(len(modality_sets), (num_windows,), generator=generator)
        is_default = torch.rand(num_windows, generator=generator) >= self.task_modality_prob
        set_index[is_default] = 0
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
class FinetuneDynamics(SGDStage):
    """Trains the world model alone, on states as perception encodes them by now: half of each batch
    is of all recorded steps, half of those that were collected last, with the modality weights of
    every task. The states don't change, so the critics stay valid."""

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(steps=400, batch_size=128))
    length: Annotated[int, HORIZON] = 5
    """Steps that are predicted, T."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.optim.num_groups(2)

    def check(self, config: Config, name: str) -> None:
        latest = config.find(CollectWithPlanner) or config.collect
        check_window(f"{name}.length", self.length, latest.steps)

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        buffers = [
            encode_buffer(agent, modality_weights) for modality_weights in task_modality_sets(agent)
        ]
        model, half, device = agent.world_model, self.optim.batch_size // 2, agent.device

        def loss(generator: torch.Generator) -> dict[str, Tensor]:
            buffer_index = int(torch.randint(len(buffers), (), generator=generator))
            batches = (
                buffers[buffer_index].sample(half, self.length, generator, latest_run=latest_run)
                for latest_run in (False, True)
            )
            all_terms, recent_terms = (
                unroll_loss(model, _to_device(batch, device), generator) for batch in batches
            )
            both = {name: term + recent_terms[name] for name, term in all_terms.items()}
            return {
                "prediction": all_terms["prediction"],
                "recent": recent_terms["prediction"],
                "interoception": both["interoception"] * (buffer_index == 0),
                "ensemble": both["ensemble"],
                "kl": both["kl"],
                "prior_nll": both["prior_nll"],
            }

        weights = {"interoception": 10.0, "kl": 0.01}
        stage_run = SGDStageRun(model, loss, self.optim, seed=seed, weights=weights)
        stage_run.log_drawn_fraction(buffers[0], "the world model", self.length)
        return stage_run


def adapt_units(agent: Agent, buffer: SamplesTrajectories) -> None:
    """Fits the units of observations and interoception to a sample of the buffer. The same buffer
    gives the same units, so a resumed run has those that it had."""
    agent.perception.adapt(_normalization_obs(agent, buffer))  # type: ignore[operator]
    interoception = _fixed_sample(buffer, 4096, Parts(obs=(), actions=False)).interoception
    interoception = interoception[:, 0].to(agent.device)
    centred = agent.cost.interoceptive_cost.centred(interoception.shape[-1])
    agent.world_model.interoception_head.adapt(interoception, centred.to(interoception.device))


def _fixed_sample(buffer: SamplesTrajectories, count: int, parts: Parts) -> Trajectory:
    """Windows of one step, drawn with a constant seed."""
    return buffer.sample(count, 1, torch.Generator().manual_seed(0), parts=parts)


def _normalization_obs(agent: Agent, buffer: SamplesTrajectories) -> Observation:
    """Observations from which perception takes its units, as many of each modality as
    `adapt_sizes` says: of large images, few."""
    counts: Mapping[str, int] = agent.perception.adapt_sizes  # type: ignore[assignment]
    found: dict[str, Tensor] = {}
    for name, count in counts.items():
        obs = as_dict(_fixed_sample(buffer, count, Parts([name], False, False)).obs)
        found[name] = obs[name][:, 0].to(agent.device)
    return found.get("obs", found)


def _to_device(batch: Trajectory, device: torch.device) -> Trajectory:
    """The batch on the device, but for the mask `valid`, which the host reads."""
    obs = tree_map(lambda part: part.to(device), batch.obs)
    rest = {name: getattr(batch, name).to(device) for name in Trajectory._fields[1:5]}
    return batch._replace(obs=obs, **rest)
