"""What is learnt of a task from memory alone."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ami_agent.adapters.env import EnvConfig
from ami_agent.losses import actor_critic_loss, choice_loss
from ami_agent.training.base import OfflineStage, SGDStageRun, StageRun
from ami_agent.training.hindsight import SamplesTrajectories, with_hindsight
from ami_agent.training.jepa import TrainJEPA
from ami_agent.training.optim import OptimConfig
from ami_agent.training.value_critics import init_value_units, value_critics_of
from modules.actor.action_space import OneHotActions
from modules.actor.policy import PolicyProposal
from modules.cost.cost import Cost, InteroceptiveCost
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


@dataclass(frozen=True, kw_only=True)
class ActorCriticStage:
    """What is learnt of a task without living: the world model learns from memory, and in imagined
    futures policy and critic learn from each other. The world model is differentiable, so the
    policy descends the energy of its own future (value gradients, Heess et al. 2015; actor and
    critic in imagination, Hafner et al. 2020)."""

    task: str = ""
    """What is to be done; the agent's first task if not given."""
    train_jepa: TrainJEPA = field(
        default_factory=lambda: TrainJEPA(
            optim=OptimConfig(steps=0, batch_size=128, final_lr_fraction=0.2)
        )
    )
    """What the world model learns; for as many updates as there are here."""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(steps=0, batch_size=128, lr=7e-4, final_lr_fraction=0.2)
    )
    """The same of policy and critic."""
    horizon: int = 4
    """Steps that they imagine, H."""
    td_lambda: float = 0.95
    """lambda"""
    ema_decay: float = 0.95
    """Decay of the slow copy of the critic."""
    hindsight_fraction: float = 0.0
    """Share of what is remembered that is looked at as if its goal had been what was achieved later
    in its episode; for worlds with goals of their own (`desired_goal`)."""
    eval_every: int = 1000
    """Steps in each world, or updates where nothing is lived, after which the agent may be judged
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
    """The agent improves on what is remembered, whoever lived it, and lives no step itself."""

    updates: int = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        validate_ranges(self, updates=ENV_STEPS)

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        return OfflineRun(self, agent, env, self.updates, seed)


class OfflineRun:
    """World model, policy and critic learn together, an update each at a time."""

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
        """What was learnt is already in place."""

    def state_dict(self) -> dict[str, Tensor]:
        return with_prefixes({"model": self.model.state_dict(), "actor": self.actor.state_dict()})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(without_prefix(state, "model"))
        self.actor.load_state_dict(without_prefix(state, "actor"))


class ActorCriticRun(SGDStageRun):
    """From remembered states the policy steers imagined futures, under the world model as it is by
    now. Their energy, judged by a slow copy of the critic, is what the policy descends; what is
    felt in them is what the critic learns to foresee (TD(lambda))."""

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
            raise ConfigError("interact learns a task of drives; its aim must be none")
        self.stage, self.agent, self.buffer = stage, agent, buffer
        self.task = task_spec.to_task(None, "plan")
        self.value_critics, self.drives = (
            value_critics_of(agent),
            agent.cost.interoceptive_cost.drives,
        )
        init_value_units(agent, buffer, min(8, agent.replay_buffer.max_window()))
        self.target_critics = EMATarget(self.value_critics, stage.ema_decay).requires_grad_(False)
        # a copy: no gradient is computed for what doesn't learn here
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
            agent.evaluator, imagine=self.model.imagine, imagine_policy=self.model.imagine_policy, cost_terms=cost,
            risk_model=deepcopy(agent.evaluator.risk_model),  # whoever acts draws from the agent's own
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
        """Takes new units where what was collected by now has left the old ones: numbers, rewards
        or an end of episodes that were not met before. Looks at all that is kept if `whole`, or
        where the `latest` steps stray."""
        agent, device = self.agent, self.agent.device
        interoception_head: Any = agent.world_model.interoception_head
        target_critics: Any = self.target_critics.average.module
        standardized_inputs = (
            agent.perception.standardized_inputs()
            if isinstance(agent.perception, MultiModalEncoder)
            else {}
        )
        branches = {
            "obs" if n == "obs" else f"obs.{n}": branch for n, branch in standardized_inputs.items()
        }

        def values(name: str, latest: int = 0) -> Tensor:
            return agent.replay_buffer.values(name, latest).to(device)

        out_of_units = [
            branch.has_outliers(values(name, latest)) for name, branch in branches.items()
        ]
        if not whole and not any(
            [*out_of_units, interoception_head.has_outliers(values("interoception", latest))]
        ):
            return
        for name, branch in branches.items():
            branch.update_units(values(name))
        interoception = values("interoception")
        scale_ratio = interoception_head.update_units(
            interoception, agent.cost.interoceptive_cost.centred(interoception.shape[-1]).to(device)
        )
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
        self.policy_proposal.evaluator.risk_model.reset(self.seed + self.step)
        evaluated = self.policy_proposal.evaluate_with(
            state, no_candidates, context._replace(horizon=self.stage.horizon)
        )
        pre_squash = agent.policy.pre_squash(state, context.goal, context.task_vector)
        losses = actor_critic_loss(
            evaluated,
            pre_squash,
            self.drives,
            self.value_critics,
            self.target_critics.average,
            self.stage.td_lambda,
        )
        return {**losses, **self._choice_loss(state, pre_squash, context)}

    def _choice_loss(
        self, state: Tensor, pre_squash: Tensor, context: TaskContext
    ) -> dict[str, Tensor]:
        """What the policy learns from one imagined step of every option; nothing where actions are
        numbers."""
        action_space = self.agent.policy.action_space
        if not isinstance(action_space, OneHotActions):
            return {}
        with torch.no_grad():
            options = action_space.alternatives(action_space.project(pre_squash))
            if not options.shape[1]:
                return {}
            imagined = self.policy_proposal.evaluator.evaluate(
                state, options[:, :, None], context._replace(horizon=1)
            )
        return choice_loss(pre_squash, imagined.energy, action_space.sizes)

    def _sample_states(self, generator: torch.Generator) -> Tensor:
        """States `[B, D]`, each with what recall makes of the moments before it."""
        agent, context = self.agent, self.stage.train_jepa.context_steps
        batch = self.buffer.sample(
            self.stage.optim.batch_size, max(1, context), generator,
            parts=OBS_ONLY,
        )  # fmt: skip
        obs = tree_map(
            lambda part: part[:, : context + 1].flatten(0, 1).to(agent.device), batch.obs
        )
        features = agent.perception(obs, agent.configurator.modality_weights(self.task))
        states = unroll_memory(agent.short_term_memory, features.unflatten(0, (-1, context + 1)))
        if batch.valid is None:
            return states[:, -1]
        # of a window that its episode's end cuts short, any state from which a step was taken
        last_steps = batch.num_valid
        random_steps = (
            torch.rand(len(last_steps), generator=generator).to(last_steps.device) * last_steps
        ).long()
        step = torch.where(batch.valid[:, -1], context, random_steps).to(states.device)
        return states[torch.arange(len(states), device=states.device), step]


def with_prefixes(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{prefix}.{n}": value for prefix, part in parts.items() for n, value in part.items()}


def without_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    own = {n: value for n, value in state.items() if n.startswith(f"{prefix}.")}
    return {n.removeprefix(f"{prefix}."): value for n, value in own.items()}
