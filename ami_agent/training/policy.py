"""Training of the policy (Mode-1): through the world model, from recorded actions, and from the
plans of Mode-2."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, NamedTuple

import torch
from torch import Tensor, nn

from ami_agent.adapters.env import EnvAdapter, EnvConfig
from ami_agent.adapters.fault_tolerance import retry_if_restarted
from ami_agent.adapters.make import Options
from ami_agent.agent import Agent
from ami_agent.evaluation.policies import EpisodeStart, TaskTracker
from ami_agent.training.base import (
    SGDStage,
    SGDStageRun,
    StageRun,
    check_task_names,
    check_window,
    encode_buffer,
    with_prefixes,
    without_prefix,
)
from ami_agent.training.distributed import gather, share, share_rows, share_size, world
from ami_agent.training.optim import OptimConfig
from ami_agent.training.precision import full
from ami_agent.user_components import class_name
from modules.actor.planning.evaluator import safe_std
from modules.actor.policy import Policy, PolicyProposal
from modules.configurator import TaskSpec
from modules.memory.replay_buffer import OBS_ONLY
from modules.types import (
    BATCH,
    ENV_STEPS,
    FRACTION,
    HORIZON,
    ConfigError,
    Observation,
    PlannerCarry,
    TaskContext,
    tree_map,
)

if TYPE_CHECKING:
    from ami_agent.config import Config


def behaviour_cloning_loss(
    policy: Policy, state: Tensor, goal: Tensor, task_vector: Tensor, action: Tensor,
    absolute: bool = False,
) -> dict[str, Tensor]:  # fmt: skip
    """Imitation of actions `[B, A]` in states `[B, D]`, for goals `[B, D]` and tasks `[B, W]`.
    `absolute`: by absolute errors instead of squared ones."""
    pre_squash = policy.pre_squash(state, goal, task_vector)
    return {"bc": policy.action_space.imitation_loss(pre_squash, action, absolute).mean()}


@dataclass(frozen=True, kw_only=True)
class AmortizePlanning(SGDStage):
    """Trains the policy on imagined rollouts from recorded states to recorded goals: it descends
    the energy that Mode-2 descends, with gradients through the world model. This amortizes planning
    over all situations (LeCun 2022, 3.1.3; value gradients, Heess et al. 2015)."""

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(steps=1000, batch_size=128))
    horizon: Annotated[int, HORIZON] = 3
    """Steps of an imagined rollout, H."""
    group_size: Annotated[int, BATCH] = 1
    """States of one episode that are each other's goals. 1: all states of the batch, for
    environments whose layout never changes."""
    tasks: tuple[str, ...] = ()
    """Names of the tasks to train on. Empty: all. A task with a weight for boredom can't be among
    them: imagined rollouts begin without an episode by which boredom is measured."""

    def check(self, config: Config, name: str) -> None:
        memory = config.memory.short_term
        if memory is not None:
            raise ConfigError(
                f"the stage {name} imagines from single observations, and a state of "
                f"{class_name(memory)} depends on those before: leave {name} out, or short_term "
                "must be None"
            )
        check_task_names(config, f"{name}.tasks", self.tasks)
        allowed = [n for n, task in config.tasks.items() if not task.weights.get("boredom")]
        for task in self.tasks or config.tasks:
            if task not in allowed:
                raise ConfigError(
                    f"the stage {name} can't practise {task!r}: boredom depends on the episode so "
                    f"far; {name}.tasks may name {', '.join(allowed) or 'none of these tasks'}"
                )

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        policy = agent.eval().policy
        # copies without gradients: their weights are not trained here
        model = deepcopy(agent.world_model).requires_grad_(False)
        cost = deepcopy(agent.cost).requires_grad_(False)
        policy_proposal = PolicyProposal(
            policy,
            replace(
                agent.evaluator, imagine_policy=model.imagine_policy, cost_terms=cost, by_hand=None
            ),
        )
        goal_group = self.group_size if self.group_size > 1 else self.optim.batch_size
        tasks = [agent.task_spec(name) for name in self.tasks] or list(agent.tasks.values())

        def loss(generator: torch.Generator) -> dict[str, Tensor]:
            batch = agent.replay_buffer.sample(
                self.optim.batch_size, 1, generator, self.group_size, parts=OBS_ONLY
            )
            obs = tree_map(lambda part: part[:, 0].to(agent.device), batch.obs)
            task_spec = tasks[int(torch.randint(len(tasks), (), generator=generator))]
            state, context = _states_in_task(agent, obs, goal_group, task_spec)
            noise_seed = int(torch.randint(2**31, (), generator=generator))
            context = policy_proposal.evaluator.with_noise(
                context._replace(horizon=self.horizon), torch.Generator().manual_seed(noise_seed)
            )
            no_candidates = policy_proposal.evaluator.no_candidates(state, context)
            energy = policy_proposal.evaluate_with(state, no_candidates, context).energy
            # in units of its own spread: tasks with large costs don't dominate the others
            return {"energy": (energy / safe_std(energy)).mean()}

        return SGDStageRun(policy, loss, self.optim, seed=seed)


@torch.no_grad()
def _states_in_task(
    agent: Agent, obs: Observation, goal_group: int, task_spec: TaskSpec
) -> tuple[Tensor, TaskContext]:
    """Observations `[B, *O]` as states under a task, and the task's context with goals: in place of
    a goal of the environment, the neighbour in a group of `goal_group` states; in place of the
    current state, the state itself."""
    weights = agent.configurator.modality_weights(task_spec.to_task(None, "plan"))
    state = full(agent.encode(obs, weights))
    neighbour = state.unflatten(0, (-1, goal_group)).roll(1, 1).flatten(0, 1)
    goals = {"env": neighbour, "current": state, "none": torch.zeros_like(state)}
    task = task_spec.to_task(None if task_spec.goal_source == "none" else obs, "plan")
    return state, agent.configurator.context(task, goals[task_spec.goal_source])


@dataclass(frozen=True, kw_only=True)
class GoalConditionedBC(SGDStage):
    """Trains the policy to repeat recorded actions: a later state of the same episode is taken for
    the goal of an action (goal-conditioned behavioural cloning; Ghosh et al. 2021). The policy
    learns no better paths than the recorded ones, and none that are longer."""

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(steps=3000, batch_size=256))
    max_goal_offset: Annotated[int, HORIZON] = 20
    """Steps, at most, from an action to the state that is taken for its goal."""
    discount: Annotated[float, FRACTION] = 1.0
    """A state n steps ahead is the goal as often as this to the power of n: below 1, what leads to
    a goal soon is imitated more often than what leads to it late."""
    absolute_error: bool = False
    """Whether errors count by their absolute value instead of its square. Then the policy takes the
    median of the recorded actions: where they had several aims, their mean is none of them."""

    def check(self, config: Config, name: str) -> None:
        if all(task.goal_source != "env" for task in config.tasks.values()):
            raise ConfigError(f"the stage {name} learns ways to goals, and no task has one")
        check_window(f"{name}.max_goal_offset", self.max_goal_offset, config.collect.steps)

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        buffer, policy = encode_buffer(agent), agent.policy
        conditions = agent.configurator.conditioned_on
        task_spec = next(task for task in agent.tasks.values() if task.goal_source == "env")
        weights = agent.configurator.cost_weights(task_spec.to_task(agent.spec.zeros(1), "react"))
        condition = torch.tensor([[float(weights.get(name, 0)) for name in conditions]])

        def loss(generator: torch.Generator) -> dict[str, Tensor]:
            batch = buffer.sample(self.optim.batch_size, self.max_goal_offset, generator)
            states = batch.states
            offsets = self.draw_offsets(len(states), generator)
            offsets = batch.wrap_to_valid(offsets).to(states.device)
            goal = states[torch.arange(len(states), device=states.device), offsets]
            task_vector = condition.to(states).expand(len(states), -1)
            return behaviour_cloning_loss(
                policy,
                *share((states[:, 0], goal, task_vector, batch.actions[:, 0].to(states))),
                absolute=self.absolute_error,
            )

        stage_run = SGDStageRun(policy, loss, self.optim, seed=seed)
        stage_run.log_drawn_fraction(buffer, "the policy", self.max_goal_offset)
        return stage_run

    def draw_offsets(self, count: int, generator: torch.Generator) -> Tensor:
        """Steps to the goal of each of `count` actions, from 1 to `max_goal_offset`, `[count]`."""
        if self.discount == 1:
            return torch.randint(1, self.max_goal_offset + 1, (count,), generator=generator)
        weights = self.discount ** torch.arange(self.max_goal_offset, dtype=torch.float64)
        return 1 + weights.multinomial(count, replacement=True, generator=generator)


@dataclass(frozen=True, kw_only=True)
class DistillPlanner(SGDStage):
    """Trains the policy (Mode-1) to do what the planner (Mode-2) would, in states that the policy
    itself visits: DAgger (Ross et al. 2011; LeCun 2022, 3.1.3)."""

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(steps=3000, batch_size=256))
    rounds: Annotated[int, (1, 100_000)] = 6
    """Rounds of collecting and labelling states; the tasks take turns."""
    num_envs: Annotated[int, (1, 1_000_000)] = 128
    """Environments of a round."""
    steps: Annotated[int, ENV_STEPS] = 16
    """Steps in each environment and round; the planner labels every one."""
    action_noise: Annotated[float, (0.0, 1e3)] = 0.3
    """Standard deviation of the noise on the policy's actions, which leads it to states off its
    path."""
    options: Options = field(default_factory=dict)
    """Keyword arguments of the environment that hold for this stage only."""
    imitated_tasks: tuple[str, ...] = ()
    """Names of the tasks in which the policy imitates the plans. Empty: all. In the others it stays
    as it is (as `AmortizePlanning` trained it), and only the energy of plans is learnt."""

    def check(self, config: Config, name: str) -> None:
        check_task_names(config, f"{name}.imitated_tasks", self.imitated_tasks)

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        return DAggerRun(self, agent, env, seed)


class Label(NamedTuple):
    """N states in tasks, the action to imitate and the energy of the plan there."""

    state: Tensor  # [N, D]
    goal: Tensor  # [N, D]
    task_vector: Tensor  # [N, W]
    action: Tensor  # [N, A]
    energy: Tensor  # [N]
    task: Tensor  # [N]: the index of the task


class DAggerRun(SGDStageRun):
    """Acts by the policy, labels its states by the planner, and trains the policy on the labels of
    the tasks that it imitates. The predictor of plan energies, by which the agent decides when to
    plan, trains on all labels."""

    def __init__(self, stage: DistillPlanner, agent: Agent, env: EnvConfig, seed: int) -> None:
        self.stage, self.agent, self.env_config, self.seed = stage, agent, env, seed
        self.labels: list[Label] = []  # of each round
        trained = nn.ModuleList([agent.policy, agent.plan_energy_predictor])
        super().__init__(trained, self._loss, stage.optim, seed=seed)

    def update(self) -> dict[str, Tensor]:
        if self.step * self.stage.rounds >= len(self.labels) * self.total:
            collect = partial(self._collect_labels, len(self.labels))
            # several processes can't begin anew together
            new_labels = collect() if world().size > 1 else retry_if_restarted(collect)
            self._set_labels(*self.labels, new_labels)
        return super().update()

    def _set_labels(self, *labels: Label) -> None:
        """Takes these as all labels, and fits the predictor's units to their energies."""
        self.labels = list(labels)
        self.all_labels = Label(*(torch.cat(parts) for parts in zip(*labels, strict=True)))
        predictor, energy = self.agent.plan_energy_predictor, self.all_labels.energy
        predictor.mean.fill_(energy.mean())  # of tasks that have no labels
        predictor.scale.fill_(energy.std(correction=0).clamp_min(1e-30))
        for task in self.all_labels.task.unique().tolist():
            own = self.all_labels.task == task
            predictor.adapt(task, self.all_labels.task_vector[own][0], energy[own])

    @torch.no_grad()
    def _collect_labels(self, round_index: int) -> Label:
        """Labels the steps of one round under the policy; in a task's first, under the planner."""
        num_envs = share_size(self.stage.num_envs)
        envs = self.env_config.build(num_envs, self.agent.device, **self.stage.options)
        with closing(envs) as env:
            return self._label_steps(env, round_index)

    def _label_steps(self, env: EnvAdapter, round_index: int) -> Label:
        own_rows = share_rows(self.stage.num_envs)
        seed, tasks = self.seed + 1_000_003 * round_index, list(self.agent.tasks.items())
        name, task_spec = tasks[round_index % len(tasks)]
        is_imitated = name in (self.stage.imitated_tasks or self.agent.tasks)
        generator = torch.Generator().manual_seed(seed)
        labels: list[Label] = []
        task_tracker = TaskTracker(task_spec)
        controller = self.agent.controller(env.num_envs, tensors=True)
        carry = PlannerCarry.initial(seed)
        reset_mask = torch.ones(self.stage.num_envs, dtype=torch.bool)
        done = ~reset_mask
        obs, info = env.reset(seed + own_rows.start)
        for step in range(self.stage.steps):
            if reset_mask.any():
                episode_start = EpisodeStart(env, obs, info, reset_mask[own_rows])
                controller.reset(episode_start.reset_mask)
                controller.set_task(task_tracker.task(episode_start, "plan"), seed + step)
                carry = PlannerCarry.initial(seed + step)
            state, context = controller.perceive(obs, env.interoception)
            # the planner itself: its labels are not perturbed where the agent is stuck
            plan, carry = self.agent.planner(state, context, carry)
            own_action = self.agent.policy(state, context.goal, context.task_vector)
            target = plan.action if is_imitated else own_action
            assert context.task_index is not None  # it is one of the agent's own tasks
            task = torch.full((len(state),), context.task_index, device=state.device)
            labels.append(
                Label(state, context.goal, context.task_vector, target, plan.energy, task)
            )
            action = self._with_noise(
                plan.action if round_index < len(tasks) else own_action, generator
            )
            result = env.step(obs, action)
            obs, info = result.next_obs, result.info
            # the step after an end only resets
            reset_mask, done = done, gather(result.done.cpu())
        steps = gather(Label(*(torch.stack(parts, 1) for parts in zip(*labels, strict=True))))
        return Label(*(part.transpose(0, 1).flatten(0, 1) for part in steps))  # [B, T] -> [T * B]

    def _with_noise(self, action: Tensor, generator: torch.Generator) -> Tensor:
        shape = (self.stage.num_envs, *action.shape[1:])
        noise = torch.randn(shape, generator=generator).to(action) * self.stage.action_noise
        return self.agent.policy.action_space.project(action + noise[share_rows(len(noise))])

    def _loss(self, generator: torch.Generator) -> dict[str, Tensor]:
        size = (self.stage.optim.batch_size,)
        indices = torch.randint(len(self.all_labels.state), size, generator=generator)
        indices = share(indices)
        label = Label(*(part[indices.to(part.device)] for part in self.all_labels))
        predictor = self.agent.plan_energy_predictor
        expected = predictor(label.state, label.goal, label.task_vector, label.task)
        error = (expected - label.energy) / predictor.energy_std(label.task_vector, label.task)
        return {
            **behaviour_cloning_loss(
                self.agent.policy, label.state, label.goal, label.task_vector, label.action
            ),
            "plan_energy": error.square().mean(),
        }

    def state_dict(self) -> dict[str, Tensor]:
        labels = {f"labels.{n}": label._asdict() for n, label in enumerate(self.labels)}
        return {**super().state_dict(), **with_prefixes(labels)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        labels: list[Label] = []
        while label := without_prefix(state, f"labels.{len(labels)}"):
            labels.append(Label(**label))
        if labels:  # else the first round was interrupted
            self._set_labels(*labels)
        super().load_state_dict(state)
