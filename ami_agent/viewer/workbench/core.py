"""The workbench: a tree of moments of an episode, and what agents plan at each of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from time import perf_counter
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ami_agent.adapters.env import EnvConfig, check_same_spaces
from ami_agent.agent import Agent, Controller, EpisodeState
from ami_agent.config import Config
from ami_agent.viewer.camera import Camera
from ami_agent.viewer.projectors import Projector
from ami_agent.viewer.record import best_so_far, critic_value, record_search
from ami_agent.viewer.workbench.simulator import Moment, Simulator
from ami_agent.viewer.workbench.variants import PlanSettings, Value, Variants
from modules.configurator import Task, TaskSpec
from modules.types import ConfigError, Plan, TaskContext

MAX_NODES = 3000
"""Moments that are kept; each holds a plan and a picture."""
MAX_LABEL = 60  # characters


class SidePlan(NamedTuple):
    """What an agent plans at a moment."""

    settings: PlanSettings
    agent: Agent
    task: Task
    context: TaskContext
    state: Tensor  # [1, D]
    plan: Plan
    after: EpisodeState  # what the controller holds once it has planned
    best_energies: np.ndarray  # the lowest energy so far after each evaluation of the search
    critic_value: float
    seconds: float
    edited: int | None = None  # the step of the plan whose action a person set


class Node(NamedTuple):
    """A moment in the tree, with the plan of every side."""

    id: int
    parent: int | None
    moment: Moment
    side_plans: Mapping[int, SidePlan]  # by side
    before: Mapping[int, SidePlan] = MappingProxyType({})  # before the last change, by side
    label: str = ""  # of the change that made it; empty after a step
    gesture: str = ""  # of the drag that made it
    action: Tensor | None = None  # [1, A] that led here


class Side:
    """An agent with settings: the first acts, the second plans in the same moments."""

    def __init__(
        self, name: str, agent: Agent, config: Config | None, projector: Projector
    ) -> None:
        self.name, self.projector = name, projector
        self.variants = Variants(agent, config)

    def task_spec(self, settings: PlanSettings, name: str) -> TaskSpec:
        """The task of that name; the agent's first one where it has none of that name."""
        agent = self.variants.agent(settings)
        return agent.task_spec(name if name in agent.tasks else "")


class Workbench:
    """Where a person changes something and the agent plans again. ConfigError for what can't be,
    and all is then as it was. For one thread at a time."""

    def __init__(
        self, sides: Sequence[Side], config: EnvConfig, camera: Camera | None, task: str, mode: str
    ) -> None:
        """`sides`: one or two; `config`: of the environment with the options of the task."""
        self.task, self.version = task, 0
        self.sides, self.second = list(sides), sides[1] if len(sides) > 1 else None
        self.simulator = Simulator(config, camera, sides[0].variants.base.task_spec(task))
        for side in sides:
            check_same_spaces(side.variants.base.spec, self.simulator.env.spec, config)
        self.own_settings = [PlanSettings(mode=mode) for _ in sides]
        self.settings = list(self.own_settings)
        self.nodes: dict[int, Node] = {}
        self.children: dict[int | None, list[int]] = {None: []}
        self.current, self._next_id = 0, 0
        self.tip = 0
        """The last moment of the episode that the agent acts in by itself."""
        self.pinned: int | None = None

    @property
    def node(self) -> Node:
        """The moment that is shown."""
        return self.nodes[self.current]

    def close(self) -> None:
        """Closes the environments."""
        self.simulator.close()

    # what a person does

    def begin(self, seed: int) -> None:
        """The first moment of the episode of this seed is shown."""
        self._show(self._begin(seed, self.settings))

    def begin_own(self, seed: int, is_shown: bool = True) -> None:
        """The agent begins an episode in which it acts by itself, with the settings of its run."""
        node = self._begin(seed, self.own_settings)
        self.tip = node.id
        if is_shown:
            self._show(node)

    def follow(self, state: Tensor, action: Tensor, is_shown: bool = True) -> None:
        """The episode in which the agent acts by itself goes on, from a state `[1, D]` by an action
        `[1, A]`. ConfigError where the workbench is in another state."""
        tip = self.nodes[self.tip]
        if not torch.allclose(tip.side_plans[0].state.cpu(), state, rtol=1e-3, atol=1e-3):
            raise ConfigError(f"{self.simulator.config.id} does not repeat its episodes")
        child = self._child(tip, action) or self._step(tip, action, self.own_settings)
        self.tip = child.id
        if is_shown:
            self._show(child)

    def step(self) -> None:
        """The first action of the plan is executed."""
        node = self.node
        action = node.side_plans[0].plan.action.cpu()
        self._show(self._child(node, action) or self._step(node, action, self.settings))

    def back(self) -> None:
        """The moment before is shown."""
        if self.node.parent is None:
            raise ConfigError("this is the beginning of the episode")
        self._show(self.nodes[self.node.parent])

    def go_to(self, node_id: int) -> None:
        """Another moment is shown."""
        self._show(self.find(node_id))

    def branch(self) -> None:
        """From here, otherwise: a copy of the moment, whose changes leave this one as it is."""
        self._vary("branch", branch=True)

    def pin(self, node_id: int | None) -> None:
        """A moment is shown beside the current one; None: no longer."""
        self.pinned = None if node_id is None else self.find(node_id).id
        self._bump()

    def change(self, side: int, setting: str, name: str, value: Value) -> None:
        """Another setting of a side, which plans again."""
        self._check_side(side)
        settings = self.settings[side].changed(setting, name, value)
        label = f"{setting} {name} {value}".replace("  ", " ")[:MAX_LABEL]
        self._vary(label, settings={side: settings})

    def edit_action(self, step: int, action: Sequence[float]) -> None:
        """Another action at a step of the plan. Those before it stay, those after it are planned
        anew from the state that is predicted after it."""
        node = self.node
        edited = self._edit(node.side_plans[0], step, action)
        self._vary(f"action {step + 1}", side_plans={**node.side_plans, 0: edited})

    def place(
        self, what: str, xy: tuple[float, float], gesture: str, is_final: bool = True
    ) -> None:
        """The agent or the goal is put at a position in pixels; `gesture`: of the drag that this
        belongs to, whose last position alone is kept. The picture is drawn anew if this
        `is_final`."""
        if what not in ("agent", "goal") or not np.isfinite(xy).all():
            raise ConfigError("only the agent or the goal can be dragged, to a position")
        moment = self.simulator.place(self.node.moment, what, np.array(xy), is_final)
        self._vary(f"{what} moved", moment=moment, gesture=gesture)

    def compare(self, is_on: bool) -> None:
        """A second side, which begins with the settings of the first, or none."""
        if is_on and len(self.sides) == 1:
            first = self.sides[0]
            if self.second is None:
                agent, config = first.variants.base, first.variants.config
                self.second = Side("other settings", agent, config, first.projector)
            self.sides.append(self.second)
            self.settings.append(self.settings[0])
        elif not is_on:
            self.sides, self.settings = self.sides[:1], self.settings[:1]
        self.own_settings = [self.own_settings[0]] * len(self.sides)
        self._show(self.node)

    # how it is done

    def _check_side(self, side: int) -> None:
        if side not in range(len(self.sides)):
            raise ConfigError("there is no such side")

    def _bump(self) -> None:
        self.version += 1

    def _show(self, node: Node) -> None:
        """Shows a moment, with the settings that its plans were made with."""
        side_plans = {n: t for n, t in node.side_plans.items() if n < len(self.sides)}
        settings = [
            side_plans[side].settings if side in side_plans else self.settings[side]
            for side in range(len(self.sides))
        ]
        for side in range(len(self.sides)):
            if side not in side_plans:
                side_plans[side] = self._plan_side(side, settings[side], node.parent, node.moment)
        self.settings = settings
        self.nodes[node.id] = node._replace(side_plans=side_plans)
        self.current = node.id
        self._bump()

    def _child(self, node: Node, action: Tensor) -> Node | None:
        """The moment after this action, where the episode went that way before."""
        for child in map(self.nodes.__getitem__, self.children[node.id]):
            if child.action is not None and torch.equal(child.action, action) and not child.label:
                return child
        return None

    def _begin(self, seed: int, settings: Sequence[PlanSettings]) -> Node:
        self._check_room()
        moment = self.simulator.begin(seed)
        side_plans = self._plan_all(settings, None, moment)
        return self._keep(Node(self._next_id, None, moment, side_plans, label=f"seed {seed}"))

    def _step(self, node: Node, action: Tensor, settings: Sequence[PlanSettings]) -> Node:
        self._check_room()
        moment = self.simulator.step(node.moment, action)
        side_plans = self._plan_all(settings, node.id, moment)
        return self._keep(Node(self._next_id, node.id, moment, side_plans, action=action))

    def _check_room(self) -> None:
        if len(self.nodes) >= MAX_NODES:
            raise ConfigError(f"the workbench keeps {MAX_NODES} moments, and that many there are")

    def _plan_all(
        self, settings: Sequence[PlanSettings], parent: int | None, moment: Moment
    ) -> dict[int, SidePlan]:
        return {
            side: self._plan_side(side, chosen, parent, moment)
            for side, chosen in enumerate(settings)
        }

    def _keep(self, node: Node) -> Node:
        if node.id not in self.nodes:
            self.children[node.parent].append(node.id)
            self.children[node.id] = []
            self._next_id += 1
        self.nodes[node.id] = node
        return node

    def _vary(
        self, label: str, *, moment: Moment | None = None, gesture: str = "",
        settings: Mapping[int, PlanSettings] | None = None,
        side_plans: Mapping[int, SidePlan] | None = None, branch: bool = False,
    ) -> None:  # fmt: skip
        """Shows a variant of the current moment. It takes the place of the moment where that is the
        last of its branch and nothing was moved; else it stands beside it."""
        node, new_moment = self.node, moment or self.node.moment
        chosen = {**dict(enumerate(self.settings)), **(settings or {})}
        if side_plans is None:
            side_plans = {
                side: node.side_plans[side]
                if moment is None and side not in (settings or {})
                else self._plan_side(side, chosen[side], node.parent, new_moment)
                for side in chosen
            }
        goes_on = bool(gesture) and gesture == node.gesture
        is_needed = self.children[node.id] or node.id in (self.tip, self.pinned)
        in_place = goes_on or not (branch or moment or is_needed)
        before = node.before if goes_on else node.side_plans
        varied = node._replace(moment=new_moment, side_plans=side_plans, before=before)
        if not in_place:
            self._check_room()
            varied = varied._replace(id=self._next_id, label=label, gesture=gesture)
        self._show(self._keep(varied))

    def _plan_side(
        self, side: int, settings: PlanSettings, parent: int | None, moment: Moment
    ) -> SidePlan:
        """What the side plans at a moment, after what it perceived before."""
        start = perf_counter()
        agent = self.sides[side].variants.agent(settings)
        task_spec = self.sides[side].task_spec(settings, self.task)
        task = settings.to_task(task_spec, moment.goal)
        controller = self._controller(side, agent, parent, moment.seed)
        # where the agent was moved by hand, the rest of an earlier plan does not fit
        self._set_task(controller, side, None if moment.moved else parent, task)
        state, context = controller.perceive(moment.obs, moment.interoception)
        with record_search(agent) as search:
            plan = controller.plan(state, context)
        if not plan.actions.isfinite().all():
            raise ConfigError("the plan is not finite with these settings")
        (best,) = best_so_far(search, plan)
        value = float(critic_value(agent, state, controller.context)[0])
        seconds = perf_counter() - start
        return SidePlan(
            settings, agent, task, context, state, plan, controller.episode, best, value, seconds
        )

    def _controller(self, side: int, agent: Agent, parent: int | None, seed: int) -> Controller:
        """A controller of the agent that has perceived the moments up to `parent`."""
        controller = agent.controller(1, seed=seed, tensors=True)
        passed = []
        while parent is not None and side not in self.nodes[parent].side_plans:
            passed.append(self.nodes[parent])
            parent = passed[-1].parent
        if parent is not None:
            side_plan = self.nodes[parent].side_plans[side]
            same_memory = type(side_plan.agent.short_term_memory) is type(agent.short_term_memory)
            if same_memory and (side_plan.agent.lasting_memory is None) == (
                agent.lasting_memory is None
            ):
                controller.episode = side_plan.after
        for node in reversed(passed):
            self._set_task(controller, side, None, self._task_of(side, node.moment))
            controller.perceive(node.moment.obs, node.moment.interoception)
        return controller

    def _task_of(self, side: int, moment: Moment) -> Task:
        settings = self.settings[side]
        return settings.to_task(self.sides[side].task_spec(settings, self.task), moment.goal)

    def _set_task(self, controller: Controller, side: int, parent: int | None, task: Task) -> None:
        """Sets the task, unless the controller goes on with the plans for the same one."""
        before = None if parent is None else self.nodes[parent].side_plans.get(side)
        if (
            before is None
            or before.agent is not controller.agent
            or before.edited is not None
            or not _same(before.task, task)
        ):
            controller.set_task(task)

    @torch.no_grad()
    def _edit(self, side_plan: SidePlan, step: int, action: Sequence[float]) -> SidePlan:
        start, agent, plan = perf_counter(), side_plan.agent, side_plan.plan
        horizon, size = plan.actions.shape[1:]
        if not isinstance(step, int) or not 0 <= step < horizon:
            raise ConfigError(f"the plan has {horizon} actions")
        numbers = torch.tensor(_numbers(action, size), device=plan.actions.device)
        actions = plan.actions.clone()
        actions[0, step] = agent.evaluator.action_space.project(numbers)
        context = side_plan.context
        if context.noise is not None:
            context = context._replace(noise=context.noise[:, :horizon])
        if step + 1 < horizon and plan.states.shape[1] > 1:
            fixed = actions[:, : step + 1]
            middle = agent.world_model.imagine(side_plan.state, fixed[:, None]).states[:, 0, -1]
            rest = context._replace(horizon=horizon - step - 1, mode="plan", noise=None)
            rest = agent.evaluator.with_noise(rest, torch.Generator().manual_seed(0))
            replanned, _ = agent.actors["plan"](middle, rest, agent.actors["plan"].initial_carry(0))
            actions = torch.cat([fixed, replanned.actions], 1)
        edited = agent.evaluator.best_plan(side_plan.state, actions[:, None], context)
        edited = edited._replace(
            candidate_states=plan.candidate_states, candidate_energies=plan.candidate_energies
        )
        return side_plan._replace(plan=edited, edited=step, seconds=perf_counter() - start)

    # what a page lists

    def find(self, node_id: object) -> Node:
        """The moment of this number; ConfigError where there is none."""
        if not isinstance(node_id, int) or node_id not in self.nodes:
            raise ConfigError("there is no such moment")
        return self.nodes[node_id]

    def path(self, node: Node) -> list[Node]:
        """The moments from the beginning of the episode to this one."""
        found = [node]
        while found[-1].parent is not None:
            found.append(self.nodes[found[-1].parent])
        return found[::-1]

    def branches(self) -> Iterator[list[Node]]:
        """Every branch of the tree from where it leaves an earlier one, to its last moment."""
        waiting = list(reversed(self.children[None]))
        while waiting:
            branch = [self.nodes[waiting.pop()]]
            while children := self.children[branch[-1].id]:
                waiting.extend(reversed(children[1:]))
                branch.append(self.nodes[children[0]])
            yield branch


def _numbers(action: Sequence[float], size: int) -> list[float]:
    """The numbers of an action that a page sent."""
    try:
        numbers = [float(number) for number in action]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != size or not np.isfinite(numbers).all():
        raise ConfigError(f"an action is {size} finite numbers")
    return numbers


def _same(before: Task, task: Task) -> bool:
    """Whether both are one task; goals are compared as objects, as they are kept along an
    episode."""
    return before.goal is task.goal and _parts(before) == _parts(task)


def _parts(task: Task) -> dict[str, Any]:
    return {name: value for name, value in vars(task).items() if name != "goal"}
