"""Training of policy and value critics in imagined rollouts, while the world model trains: on the
replay buffer alone, or while the agent acts in environments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn

from ami_agent.adapters.env import ActFn, EnvConfig, EnvironmentSpec
from ami_agent.agent import Agent
from ami_agent.evaluation.policies import EpisodeStart, PolicyFactory, agent_policy_factory
from ami_agent.training.base import (
    SGDStageRun,
    Stage,
    StageRun,
    check_task_names,
    with_prefixes,
    without_prefix,
)
from ami_agent.training.collect import EPISODE_METRICS, Collector
from ami_agent.training.critics import (
    check_value_critics,
    init_value_units,
    lambda_returns,
    value_critics_of,
    with_terminal_values,
)
from ami_agent.training.hindsight import SamplesTrajectories, check_reward_fn, with_hindsight
from ami_agent.training.jepa import TrainJEPA
from ami_agent.training.optim import OptimConfig
from ami_agent.training.precision import full
from ami_agent.user_components import class_name
from modules.actor.planning.evaluator import safe_std
from modules.actor.policy import ActionSpace, OneHotActions, PolicyProposal
from modules.cost.cost import Cost
from modules.cost.drives import Drives, InteroceptiveCost
from modules.cost.value_critics import ValueCritics
from modules.memory.replay_buffer import OBS_ONLY
from modules.memory.short_term import unroll_memory
from modules.perception.multi_modal import MultiModalEncoder
from modules.perception.target_encoder import EMATarget
from modules.types import (
    ENV_STEPS,
    FRACTION,
    HORIZON,
    ConfigError,
    EvaluatedRollouts,
    Observation,
    TaskContext,
    tree_map,
)

if TYPE_CHECKING:
    from ami_agent.config import Config

OPTIM_STEPS = ("optim.steps", "train_jepa.optim.steps")
"""Settings that have no effect: the stage says how many updates there are."""
CHECK_UNITS_EVERY = 10
"""Steps in each environment between checks of the latest steps for outliers in their units. Checks
of the whole buffer become rarer as it grows, so that their cost per step stays the same."""
MAX_PRE_SQUASH = 2.5
"""Where tanh has come 99 % of the way to its bound, and its gradient vanishes."""
CHOICE_TEMPERATURE = 0.2
"""Of the softmin over options, in standard deviations of their energies."""


def actor_critic_loss(
    evaluated: EvaluatedRollouts, pre_squash: Tensor, drives: Drives, value_critics: ValueCritics,
    next_values: Tensor, td_lambda: float,
) -> dict[str, Tensor]:  # fmt: skip
    """The loss of imagined rollouts of the policy `[B, 1, H, ..]`. `next_values` `[B, 1, H, W]`:
    those of the slow copy of the critics after each step.

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
        discount = value_critics.discount
        costs = with_terminal_values(costs, continues, discount, value_critics.terminal)
        values = next_values.detach().flatten(0, 1)
        returns = lambda_returns(costs, values, continues, discount, td_lambda)
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
class ActorCriticStage(Stage):
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
    """Training of policy and value critics. `optim.steps` has no effect here either."""
    horizon: Annotated[int, HORIZON] = 4
    """Steps of an imagined rollout, H."""
    td_lambda: Annotated[float, FRACTION] = 0.95
    """Lambda of TD(lambda)."""
    ema_decay: Annotated[float, FRACTION] = 0.95
    """Decay of the slow copy of the critics."""
    hindsight_fraction: Annotated[float, FRACTION] = 0.0
    """Fraction of the sampled windows whose goal is replaced by one that was achieved later in the
    episode; for environments whose observations have a `desired_goal`."""
    eval_every: Annotated[int, ENV_STEPS] = 1000
    """Steps in each environment (offline: updates) between evaluations, if there are any
    (`--eval-every-stage`)."""

    def check(self, config: Config, name: str) -> None:
        check_value_critics(config, name)
        memory = config.memory.short_term
        if memory is not None and not self.train_jepa.context_steps:
            raise ConfigError(
                f"a state of {class_name(memory)} depends on the observations before, but "
                f"{name}.train_jepa.context_steps is 0: it must be at least 1"
            )
        check_task_names(config, f"{name}.task", [self.task] if self.task else [])
        task = self.task or next(iter(config.tasks), "")
        if task and config.tasks[task].goal_source != "none":
            raise ConfigError(
                f"the stage {name} learns a task of drives, but the goal_source of {task!r} "
                f"is {config.tasks[task].goal_source!r}; it must be 'none'"
            )

    def check_processes(self, config: Config, name: str) -> None:
        raise ConfigError(f"the stage {name} learns in a single process: start it without torchrun")

    def check_env(self, spec: EnvironmentSpec, env: EnvConfig) -> None:
        if self.hindsight_fraction:
            check_reward_fn(spec, env)


@dataclass(frozen=True, kw_only=True)
class OfflineActorCritic(ActorCriticStage):
    """Trains the agent on a task with the replay buffer alone, whatever policy filled it."""

    updates: Annotated[int, ENV_STEPS] = 5000
    """Updates of the world model, and as many of policy and critics."""

    @property
    def overridden_settings(self) -> Mapping[str, str]:
        return dict.fromkeys(OPTIM_STEPS, "updates")

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        return OfflineRun(self, agent, env, self.updates, seed)


@dataclass(frozen=True, kw_only=True)
class OnlineActorCritic(ActorCriticStage):
    """Trains the agent on a task while it acts, with noise on its actions; its steps are added to
    the replay buffer."""

    steps: Annotated[int, ENV_STEPS] = 10_000
    """Steps in each environment."""
    updates_per_step: Annotated[float, (0.0, 1e3)] = 1.0
    """Updates per step in an environment."""
    action_noise: Annotated[float, (0.0, 1e3)] = 0.2
    """Standard deviation of the noise on actions, which lie in [-1, 1]."""

    @property
    def env_steps(self) -> int:
        return self.steps

    @property
    def overridden_settings(self) -> Mapping[str, str]:
        return dict.fromkeys(OPTIM_STEPS, "steps")

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        return OnlineRun(self, agent, env, seed)


class OfflineRun(StageRun):
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
    def eval_mode_due(self) -> str:
        return "" if self.step % self.stage.eval_every else "react"

    def update(self) -> dict[str, Tensor]:
        metrics = {"model": self.model.update(), "actor": self.actor.update()}
        self.step = self.actor.step
        return {f"{prefix} {n}": v for prefix, part in metrics.items() for n, v in part.items()}

    def state_dict(self) -> dict[str, Tensor]:
        return with_prefixes({"model": self.model.state_dict(), "actor": self.actor.state_dict()})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(without_prefix(state, "model"))
        self.actor.load_state_dict(without_prefix(state, "actor"))
        self.step = self.actor.step


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
        self.stage, self.agent, self.buffer = stage, agent, buffer
        self.task = agent.task_spec(stage.task).to_task(None, "plan")
        self.value_critics = value_critics_of(agent)
        self.drives = agent.cost.interoceptive_cost.drives
        init_value_units(agent, buffer, min(8, agent.replay_buffer.max_window()))
        self.target_critics = EMATarget(self.value_critics, stage.ema_decay).requires_grad_(False)
        # a copy without gradients: its weights are not trained here
        self.model = deepcopy(agent.world_model).requires_grad_(False)
        # listed once: that takes longer than to copy them
        self.copied, self.current = (
            list(model.state_dict().values()) for model in (self.model, agent.world_model)
        )
        target_critics: Any = self.target_critics.average.module
        target_critics.register_forward_hook(self._keep_values)
        self.latest_values: Tensor | None = None  # of the slow copy
        self.context: TaskContext | None = None  # the same at every update
        interoceptive_cost = InteroceptiveCost(self.drives, target_critics)
        cost = Cost(
            agent.cost.goal_critic,
            interoceptive_cost,
            self.model.ensemble.disagreement,
            agent.cost.custom,
        )
        self.evaluator = replace(
            agent.evaluator, imagine=self.model.imagine, imagine_policy=self.model.imagine_policy,
            cost_terms=cost, by_hand=None,
        )  # fmt: skip
        self.seed = seed
        self.policy_proposal = PolicyProposal(agent.policy, self.evaluator)
        super().__init__(
            nn.ModuleList([agent.policy, self.value_critics, self.target_critics]), self._loss,
            replace(stage.optim, steps=updates), seed=seed,
            post_step=self.target_critics.update,
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
        with torch.no_grad():
            state = full(self._sample_states(generator))
        if self.context is None:
            self.context = agent.configurator.context(self.task, torch.zeros_like(state))
        context, self.latest_values = self.context, None
        torch._foreach_copy_(self.copied, self.current)
        rng, evaluator = torch.Generator().manual_seed(self.seed + self.step), self.evaluator
        imagining = evaluator.with_noise(context._replace(horizon=self.stage.horizon), rng)
        evaluated = self.policy_proposal.evaluate_with(
            state, evaluator.no_candidates(state, imagining), imagining
        )
        pre_squash = agent.policy.pre_squash(state, context.goal, context.task_vector)
        next_values = self.latest_values
        if next_values is None or len(evaluated.rollout.states[0]) != next_values.shape[1]:
            # the energy has no values, or those of all sampled futures
            with torch.no_grad():
                next_values = self.target_critics.average(evaluated.rollout.states[:, :, 1:])
        losses = actor_critic_loss(
            evaluated, pre_squash, self.drives, self.value_critics, next_values,
            self.stage.td_lambda,
        )  # fmt: skip
        return {**losses, **self._choice_loss(state, pre_squash, context, rng)}

    def _keep_values(self, critics: nn.Module, args: Any, values: Tensor) -> None:
        """Keeps the values of the futures `[B, P, H, W]` whose energy is computed, so that they
        need not be computed twice."""
        self.latest_values = values

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
            context = self.evaluator.with_noise(context._replace(horizon=1), rng)
            imagined = self.evaluator.evaluate(state, options[:, :, None], context)
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


def with_action_noise(
    make_policy: PolicyFactory, action_noise: float, action_space: ActionSpace
) -> PolicyFactory:
    """The same policy with Gaussian noise on its actions. The noise depends on the seed and on the
    number of actions so far alone, so a run can be resumed at any step."""

    def make_noisy_policy(start: EpisodeStart, seed: int) -> ActFn:
        act_fn, seeds = make_policy(start, seed), count(seed)

        def noisy_act(obs: Observation) -> Tensor:
            action = act_fn(obs)
            generator = torch.Generator().manual_seed(next(seeds))
            noise = torch.randn(action.shape, generator=generator).to(action)
            return action_space.project(action + action_noise * noise)

        return noisy_act

    return make_noisy_policy


class OnlineRun(StageRun):
    """Alternates between a step in every environment and updates. When it is resumed in the middle
    of an episode, it repeats the recorded actions to bring the environments to where they were. An
    agent without short-term memory then continues exactly as if there had been no interruption."""

    def __init__(self, stage: OnlineActorCritic, agent: Agent, env: EnvConfig, seed: int) -> None:
        self.stage, self.agent, self.total, self.updates_due = stage, agent, stage.steps, 0.0
        task_spec, num_envs = agent.task_spec(stage.task), agent.replay_buffer.num_envs
        updates = int(stage.steps * num_envs * stage.updates_per_step) + 1
        self.learner = OfflineRun(stage, agent, env, updates, seed)
        policy = with_action_noise(
            agent_policy_factory(agent, "react", task_spec),
            stage.action_noise,
            agent.policy.action_space,
        )
        self.build_env = partial(env.build, num_envs, agent.device)
        self.collector = Collector(agent, self.build_env(), stage.steps, [policy], seed)

    @property
    def eval_mode_due(self) -> str:
        return "" if self.step % self.stage.eval_every else "react"

    def update(self) -> dict[str, Tensor]:
        """One step in every environment, and the updates that are due after it."""
        if self.eval_mode_due:
            self.collector.start_policy()  # whether the evaluation takes place or not
        metrics = self.collector.update()
        self.step = self.collector.step
        if self.step % CHECK_UNITS_EVERY == 0:
            every = CHECK_UNITS_EVERY * 2 ** max(0, (self.step // 200).bit_length() - 1)
            self.learner.actor.refresh_units(CHECK_UNITS_EVERY, whole=self.step % every == 0)
        self.updates_due += self.stage.updates_per_step * self.agent.replay_buffer.num_envs
        update_metrics: dict[str, Tensor] = {}
        while self.updates_due >= 1:
            update_metrics = self.learner.update()
            self.updates_due -= 1
        return update_metrics | {n: metrics[n] for n in EPISODE_METRICS if n in metrics}

    def close_envs(self) -> None:
        self.collector.env.close()

    def reopen_envs(self) -> None:
        self.collector.env = self.build_env()
        self.collector.reset_envs()

    def finish(self) -> None:
        self.collector.finish()

    def state_dict(self) -> dict[str, Tensor]:
        updates_due = torch.tensor(self.updates_due).double()
        own_state = {**self.collector.state_dict(), "here.debt": updates_due}
        return {**self.learner.state_dict(), **own_state}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.learner.load_state_dict(state)
        self.collector.load_state_dict(state)
        self.step, self.updates_due = self.collector.step, float(state["here.debt"])
