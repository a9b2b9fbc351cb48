"""Training of policy and value critics in imagined rollouts, while the world model trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ami_agent.adapters.env import EnvConfig
from ami_agent.training.base import (
    OfflineStage,
    SGDStageRun,
    StageRun,
    with_prefixes,
    without_prefix,
)
from ami_agent.training.hindsight import SamplesTrajectories, with_hindsight
from ami_agent.training.jepa import TrainJEPA
from ami_agent.training.optim import OptimConfig
from ami_agent.training.value_critics import (
    init_value_units,
    lambda_returns,
    value_critics_of,
)
from modules.actor.action_space import OneHotActions
from modules.actor.planning.evaluator import safe_std
from modules.actor.planning.risk import EvaluatedRollouts
from modules.actor.policy import PolicyProposal
from modules.cost.cost import Cost, InteroceptiveCost, ValueCritics
from modules.cost.drives import Drives
from modules.memory.replay_buffer import OBS_ONLY
from modules.memory.short_term import unroll_memory
from modules.perception import MultiModalEncoder
from modules.perception.target_encoder import EMATarget
from modules.types import (
    ENV_STEPS,
    FRACTION,
    HORIZON,
    ConfigError,
    TaskContext,
    tree_map,
    validate_ranges,
)

if TYPE_CHECKING:
    from ami_agent.agent import Agent


MAX_PRE_SQUASH = 2.5
"""Where tanh has come 99 % of the way to its bound, and its gradient vanishes."""
CHOICE_TEMPERATURE = 0.2
"""Of the softmin over options, in standard deviations of their energies."""


def actor_critic_loss(
    evaluated: EvaluatedRollouts, pre_squash: Tensor, drives: Drives, value_critics: ValueCritics,
    target_critics: nn.Module, td_lambda: float,
) -> dict[str, Tensor]:  # fmt: skip
    """The loss of imagined rollouts of the policy `[B, 1, H, ..]`.

    `energy`: their energy, in units of its own spread, so that tasks with large costs take no
    larger steps. `saturation`: how far the actions before squashing, `[B, A]`, lie where squashing
    has no gradient. `value`: the critics' error against lambda returns, weighted by the probability
    that the episode has not ended by then."""
    energy, rollout = evaluated.energy, evaluated.rollout
    with torch.no_grad():
        costs = drives(rollout.interoception).flatten(0, 1)  # [B, H, W]
        continues = drives.continue_prob(rollout.interoception).flatten(0, 1)  # [B, H]
        survival, _ = drives.survival(rollout.interoception.flatten(0, 1))
        states = rollout.states.detach().flatten(0, 1)  # [B, H + 1, D]
        returns = lambda_returns(
            costs, target_critics(states[:, 1:]), continues, value_critics.discount, td_lambda,
            value_critics.terminal,
        )  # fmt: skip
    error = (value_critics.all_values(states[:, :-1]) - returns) / value_critics.scale
    return {
        "energy": (energy / safe_std(energy)).mean(),
        "saturation": (pre_squash.abs() - MAX_PRE_SQUASH).relu().square().mean(),
        "value": (survival[..., None] * error.square()).mean(),
    }


def choice_loss(pre_squash: Tensor, energy: Tensor, sizes: Sequence[int]) -> dict[str, Tensor]:
    """Cross-entropy of the policy's logits `[B, A]` to the softmin of the energies `[B, A]` of all
    options, for each choice of `sizes` by itself (the improved policy of MPO, Abdolmaleki et al.
    2018, with every action listed). Unlike that of straight-through probabilities, its gradient
    does not vanish where the policy is sure of an option of high energy."""
    parts = energy.split(tuple(sizes), -1)
    advantage = torch.cat([part - part.mean(-1, keepdim=True) for part in parts], -1)
    # differences within the rounding of the energies are none
    rounding = torch.finfo(energy.dtype).eps * energy.abs().amax()
    unit = torch.maximum(advantage.square().mean().sqrt(), 8 * rounding).clamp_min(1e-30)
    losses = []
    for logits, option_advantage in zip(
        pre_squash.split(sizes, -1), advantage.split(sizes, -1), strict=True
    ):
        target = (-option_advantage / (CHOICE_TEMPERATURE * unit)).softmax(-1)
        losses.append(-(target * logits.log_softmax(-1)).sum(-1))
    return {"choice": torch.stack(losses).sum(0).mean()}


@dataclass(frozen=True, kw_only=True)
class ActorCriticStage:
    """The settings that online and offline training share: the world model trains on the replay
    buffer, and in imagined rollouts the policy descends their energy, with gradients through the
    world model (value gradients, Heess et al. 2015; actor and critic in imagination, Hafner et al.
    2020), while the value critics learn what the rollouts cost."""

    task: str = ""
    """Name of the task to learn. Empty: the agent's first."""
    train_jepa: TrainJEPA = field(
        default_factory=lambda: TrainJEPA(
            optim=OptimConfig(steps=0, batch_size=128, final_lr_fraction=0.2)
        )
    )
    """Training of the world model. `optim.steps` has no effect: there are as many updates as the
    stage has."""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(steps=0, batch_size=128, lr=7e-4, final_lr_fraction=0.2)
    )
    """Training of policy and value critics; likewise."""
    horizon: int = 4
    """Steps of an imagined rollout, H."""
    td_lambda: float = 0.95
    """Lambda of TD(lambda)."""
    ema_decay: float = 0.95
    """Decay of the slow copy of the critics."""
    hindsight_fraction: float = 0.0
    """Fraction of the sampled windows whose goal is replaced by one that was achieved later in the
    episode; for environments whose observations have a `desired_goal`."""
    eval_every: int = 1000
    """Steps in each environment (offline: updates) between evaluations, if there are any
    (`--eval-every-stage`)."""

    def __post_init__(self) -> None:
        validate_ranges(
            self,
            horizon=HORIZON,
            td_lambda=FRACTION,
            ema_decay=FRACTION,
            hindsight_fraction=FRACTION,
        )
        validate_ranges(self, eval_every=ENV_STEPS)


@dataclass(frozen=True, kw_only=True)
class OfflineActorCritic(ActorCriticStage, OfflineStage):
    """Trains the agent on a task with the replay buffer alone, whatever policy filled it."""

    updates: int = 5000
    """Updates of the world model, and as many of policy and critics."""

    def __post_init__(self) -> None:
        super().__post_init__()
        validate_ranges(self, updates=ENV_STEPS)

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        return OfflineRun(self, agent, env, self.updates, seed)


class OfflineRun:
    """Updates the world model, then policy and critics, in turn."""

    def __init__(
        self, stage: ActorCriticStage, agent: Agent, env: EnvConfig, updates: int, seed: int
    ) -> None:
        self.stage, self.total = stage, updates
        model_optim = replace(stage.train_jepa.optim, steps=updates)
        buffer = with_hindsight(agent.replay_buffer, stage.hindsight_fraction, agent.spec, env)
        self.model = replace(stage.train_jepa, optim=model_optim).make_run(agent, buffer, seed)
        self.actor = ActorCriticRun(stage, agent, buffer, updates, seed)

    @property
    def step(self) -> int:
        return self.actor.step

    @property
    def eval_mode_due(self) -> str:
        return "" if self.step % self.stage.eval_every else "react"

    def update(self) -> dict[str, Tensor]:
        metrics = {"model": self.model.update(), "actor": self.actor.update()}
        return {f"{prefix} {n}": v for prefix, part in metrics.items() for n, v in part.items()}

    def finish(self) -> None:
        """The trained modules are the agent's own."""

    def state_dict(self) -> dict[str, Tensor]:
        return with_prefixes({"model": self.model.state_dict(), "actor": self.actor.state_dict()})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(without_prefix(state, "model"))
        self.actor.load_state_dict(without_prefix(state, "actor"))


class ActorCriticRun(SGDStageRun):
    """Trains policy and value critics on rollouts that are imagined from recorded states, with the
    current world model. The rollouts' energy has values of a slow copy of the critics."""

    def __init__(
        self,
        stage: ActorCriticStage,
        agent: Agent,
        buffer: SamplesTrajectories,
        updates: int,
        seed: int,
    ) -> None:
        task_spec = agent.task_spec(stage.task)
        if task_spec.goal_source != "none":
            raise ConfigError(
                "actor_critic trains on tasks without a goal: the task's goal_source is "
                f"{task_spec.goal_source!r}, and must be 'none'"
            )
        self.stage, self.agent, self.buffer = stage, agent, buffer
        self.task = task_spec.to_task(None, "plan")
        self.value_critics = value_critics_of(agent)
        self.drives = agent.cost.interoceptive_cost.drives
        init_value_units(agent, buffer, min(8, agent.replay_buffer.max_window()))
        self.target_critics = EMATarget(self.value_critics, stage.ema_decay).requires_grad_(False)
        # a copy without gradients: its weights are not trained here
        self.model = deepcopy(agent.world_model).requires_grad_(False)
        target_critics: Any = self.target_critics.average.module
        interoceptive_cost = InteroceptiveCost(self.drives, target_critics)
        cost = Cost(
            agent.cost.goal_critic,
            interoceptive_cost,
            self.model.ensemble.disagreement,
            agent.cost.custom,
        )
        evaluator = replace(
            agent.evaluator, imagine=self.model.imagine, imagine_policy=self.model.imagine_policy,
            cost_terms=cost,
        )  # fmt: skip
        self.seed = seed
        self.policy_proposal = PolicyProposal(agent.policy, evaluator)
        super().__init__(
            nn.ModuleList([agent.policy, self.value_critics, self.target_critics]), self._loss,
            replace(stage.optim, steps=updates), weights={}, seed=seed,
            post_step=lambda: self.target_critics.update(self.value_critics),
        )  # fmt: skip

    @torch.no_grad()
    def refresh_units(self, latest: int, whole: bool) -> None:
        """Renews the units of observations and interoception where they no longer fit: because of
        numbers, rewards or ends of episodes that were not met before. The new units are those of
        the whole buffer; they are computed if `whole`, or where the `latest` steps have outliers in
        the old units."""
        agent, device = self.agent, self.agent.device
        interoception_head: Any = agent.world_model.interoception_head
        target_critics: Any = self.target_critics.average.module
        standardized_inputs = (
            agent.perception.standardized_inputs()
            if isinstance(agent.perception, MultiModalEncoder)
            else {}
        )
        branches = {
            "obs" if name == "obs" else f"obs.{name}": branch
            for name, branch in standardized_inputs.items()
        }

        def values(name: str, latest: int = 0) -> Tensor:
            return agent.replay_buffer.values(name, latest).to(device)

        has_outliers = [
            *(branch.has_outliers(values(name, latest)) for name, branch in branches.items()),
            interoception_head.has_outliers(values("interoception", latest)),
        ]
        if not whole and not any(has_outliers):
            return
        for name, branch in branches.items():
            branch.update_units(values(name))
        interoception = values("interoception")
        centred = agent.cost.interoceptive_cost.centred(interoception.shape[-1]).to(device)
        scale_ratio = interoception_head.update_units(interoception, centred)
        shift = self.drives.step_shift(
            interoception_head.subtract_offset, torch.zeros_like(interoception[0])
        )
        has_terminals = bool(values("terminated").any())
        for critic in (self.value_critics, target_critics):
            critic.rescale_costs(scale_ratio[self.drives.columns], shift, has_terminals)

    def _loss(self, generator: torch.Generator) -> dict[str, Tensor]:
        agent = self.agent
        current = list(agent.world_model.state_dict().values())
        torch._foreach_copy_(list(self.model.state_dict().values()), current)
        with torch.no_grad():
            state = self._sample_states(generator)
        context = agent.configurator.context(self.task, torch.zeros_like(state))
        no_candidates = state.new_empty(len(state), 0, self.stage.horizon, agent.spec.action_dim)
        rng = torch.Generator().manual_seed(self.seed + self.step)
        evaluated = self.policy_proposal.evaluate_with(
            state, no_candidates, self.policy_proposal.evaluator.with_noise(
                context._replace(horizon=self.stage.horizon), rng
            ),
        )  # fmt: skip
        pre_squash = agent.policy.pre_squash(state, context.goal, context.task_vector)
        losses = actor_critic_loss(
            evaluated, pre_squash, self.drives, self.value_critics, self.target_critics.average,
            self.stage.td_lambda,
        )  # fmt: skip
        return {**losses, **self._choice_loss(state, pre_squash, context, rng)}

    def _choice_loss(
        self, state: Tensor, pre_squash: Tensor, context: TaskContext, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """The choice loss of one imagined step with every option; empty where actions are
        continuous."""
        action_space = self.agent.policy.action_space
        if not isinstance(action_space, OneHotActions):
            return {}
        with torch.no_grad():
            options = action_space.alternatives(action_space.project(pre_squash))
            if not options.shape[1]:
                return {}
            evaluator = self.policy_proposal.evaluator
            context = evaluator.with_noise(context._replace(horizon=1), rng)
            imagined = evaluator.evaluate(state, options[:, :, None], context)
        return choice_loss(pre_squash, imagined.energy, action_space.sizes)

    def _sample_states(self, generator: torch.Generator) -> Tensor:
        """Recorded states `[B, D]`, each after `context_steps` steps in short-term memory."""
        agent, context = self.agent, self.stage.train_jepa.context_steps
        batch = self.buffer.sample(
            self.stage.optim.batch_size, max(1, context), generator, parts=OBS_ONLY
        )
        obs = tree_map(
            lambda part: part[:, : context + 1].flatten(0, 1).to(agent.device), batch.obs
        )
        features = agent.perception(obs, agent.configurator.modality_weights(self.task))
        states = unroll_memory(agent.short_term_memory, features.unflatten(0, (-1, context + 1)))
        if batch.valid is None:
            return states[:, -1]
        # of a padded window, any state from which a step was taken
        num_valid = batch.num_valid
        random = torch.rand(len(num_valid), generator=generator).to(num_valid.device)
        random_steps = (random * num_valid).long()
        step = torch.where(batch.valid[:, -1], context, random_steps).to(states.device)
        return states[torch.arange(len(states), device=states.device), step]
