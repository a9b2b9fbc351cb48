"""A task configures every module; an invalid one is refused in one line that names the choices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import count

import pytest
import torch
from torch import Tensor

from ami_agent import recipes
from ami_agent.adapters.env import EnvironmentSpec
from ami_agent.adapters.tensors import ModalitySpec
from ami_agent.agent import Agent
from ami_agent.config import Config, build, override
from ami_agent.evaluation.policies import EpisodeStart, TaskTracker
from modules.configurator import ConfiguratorConfig, Task, TaskSpec
from modules.cost.goal_critic import GoalCriticConfig
from modules.cost.value_critics import ValueCriticsConfig
from modules.memory.short_term import GRUMemoryConfig
from modules.perception.multi_modal import MultiModalEncoderConfig
from modules.types import ConfigError
from modules.world_model.dynamics import MLPDynamicsConfig
from modules.world_model.jepa import (
    InteroceptionHeadConfig,
    WorldModelConfig,
)

SPEC = EnvironmentSpec(
    {"sight": ModalitySpec((4,), torch.float32), "touch": ModalitySpec((3,), torch.float32)},
    2,
    ("reward", "energy", "damage"),
)
EAT = Task(drives={"hunger": 1.0})


@pytest.fixture
def config() -> Config:
    """An agent with every kind of drive and critic."""
    return override(
        recipes.two_rooms(),
        {
            "perception": MultiModalEncoderConfig(hidden=8, vector_dim=4),
            "memory.short_term": GRUMemoryConfig(hidden=4),
            "world_model": WorldModelConfig(
                dynamics=MLPDynamicsConfig(hidden=8),
                interoception_head=InteroceptionHeadConfig(hidden=4),
            ),
            "cost.drives": ("hunger", "pain"),
            "cost.goal_critic": GoalCriticConfig(),
            "cost.value_critics": ValueCriticsConfig(hidden=8),
            "configurator": ConfiguratorConfig(
                goal_distance=2.0,
                control_cost=0.5,
                critic=3.0,
                conditioned_on=("pain", "goal_distance", "hunger"),
            ),
            "tasks": {"eat": TaskSpec(drives={"hunger": 1.0})},
        },
    )


def make_policy(config: Config) -> Agent:
    """An agent in which every part has an effect, as after some training."""
    agent = build(config, SPEC).eval()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng))
    return agent


@pytest.fixture
def agent(config: Config) -> Agent:
    return make_policy(config)


def sensed(seed: int = 0, num_envs: int = 2) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(num_envs, *modality.shape, generator=rng)
        for name, modality in SPEC.modalities.items()
    }


HOME = sensed(7)
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"drives": {"greed": 1.0}}, "weight of the drive 'greed': there are hunger, pain$"),
        ({"drives": {"pain": -1.0}}, r"weight of the drive 'pain' is -1\.0; it must be 0 or more$"),
        ({"drives": {"pain": NAN}}, "weight of the drive 'pain' is nan; it must be 0 or more$"),
        ({"drives": {"pain": INF}}, "weight of the drive 'pain' is inf; it must be 0 or more$"),
        (
            {"modality_weights": {"smell": 1.0}},
            "modality weight 'smell': there are sight, touch$",
        ),
        (
            {"modality_weights": {"touch": -0.5}},
            r"modality weight 'touch' is -0\.5; it must be 0 or more$",
        ),
        (
            {"modality_weights": {"touch": NAN}},
            "modality weight 'touch' is nan; it must be 0 or more$",
        ),
        ({"limits": {"greed": 1.0}}, "limit of the drive 'greed': there are hunger, pain$"),
        ({"limits": {"pain": NAN}}, "limit of 'pain' is nan; it must be a finite number$"),
        (
            {"weights": {"greed": 1.0}},
            "'greed'; there are goal_distance, .*hunger, pain, critic_hunger, ",
        ),
        ({"weights": {"pain": NAN}}, "weight of 'pain' is nan; it must be 0 or more$"),
        (
            {"weights": {"control_cost": 0.0}, "drives": {}},
            "no cost has a weight above 0; .*critic_pain",
        ),
        (
            {"goal": {**HOME, "touch": torch.zeros(2, 5)}},
            r"the goal is sight \(2, 4\).*touch \(2, 5\).*must be a batch of sight \(4,\).*\(3,\)",
        ),
        ({"goal": {"sight": HOME["sight"]}}, r"the goal is sight \(2, 4\) .*touch \(3,\)"),
        ({"goal": HOME["sight"]}, r"the goal is \(2, 4\) .*must be a batch of sight \(4,\)"),
        ({"mode": "sleep"}, "no mode 'sleep'; there are react, plan, auto$"),
    ],
)
def test_an_invalid_task_gets_one_line_and_the_old_one_stays(agent, wish, message):
    controller = agent.controller(tensors=True)
    controller.set_task(EAT)
    before = controller.context
    with pytest.raises(ConfigError, match=message) as raised:
        controller.set_task(replace(EAT, **wish))
    assert "\n" not in str(raised.value)
    assert controller.context is before


def test_an_agent_without_drives_says_so(config):
    config = override(
        config,
        {
            "cost.drives": (),
            "cost.value_critics": None,
            "configurator": ConfiguratorConfig(),
            "tasks": {"come": TaskSpec(goal_source="env")},
        },
    )
    with pytest.raises(ConfigError, match=r"'hunger': this agent has none$"):
        make_policy(config).context(EAT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cost.drives": ("hunger", "thirst")}, "'thirst'; there are hunger, pain, "),
        (
            {"cost.drives": ()},
            "predict the costs of drives, and there are none: it must be None$",
        ),
        ({"tasks": {}}, "needs at least one task"),
        (
            {"tasks": {"hide": TaskSpec(drives={"fear": 1.0})}},
            "^task 'hide': weight of the drive 'fear': there are hunger, pain$",
        ),
        (
            {"tasks": {"hide": TaskSpec(drives={"pain": 1.0}, modality_weights={"smell": 0.0})}},
            "^task 'hide': modality weight 'smell': there are sight, touch$",
        ),
        (
            {"configurator": ConfiguratorConfig(modality_weights={"smell": 2.0})},
            "modality weight 'smell': there are sight, touch$",
        ),
        (
            {"configurator": ConfiguratorConfig(conditioned_on=("fear",))},
            "configurator.conditioned_on: .*'fear'; there are goal_distance, control_cost",
        ),
    ],
)
def test_invalid_settings_are_refused_when_the_agent_is_built(config, changes, message):
    with pytest.raises(ConfigError, match=message):
        build(override(config, changes), SPEC)


def test_a_drive_whose_signal_is_missing_is_refused_and_the_signals_are_named(config):
    no_drive_tasks = SPEC._replace(interoception=("reward", "energy"))
    with pytest.raises(
        ConfigError, match=r"'pain' needs the signal 'damage',.* it declares reward, energy$"
    ):
        build(config, no_drive_tasks)


def test_without_a_goal_there_is_no_distance_to_it(agent):
    controller = agent.controller(tensors=True)
    controller.set_task(EAT)
    assert {"goal_distance", "critic"}.isdisjoint(controller.context.weights)
    assert set(controller.act(sensed()).terms) == {"control_cost", "hunger", "critic_hunger"}
    controller.set_task(replace(EAT, goal=HOME))
    weights = controller.context.weights
    assert (weights["goal_distance"], weights["control_cost"], weights["critic"]) == (2.0, 0.5, 3.0)
    assert {"goal_distance", "critic", "hunger"} < set(controller.act(sensed()).terms)


def test_the_goal_is_the_state_that_it_would_be_encoded_as(agent):
    controller = agent.controller(tensors=True)
    controller.set_task(Task(goal=HOME))
    torch.testing.assert_close(controller.context.goal, agent.encode(HOME))
    controller.set_task(Task(goal=HOME, modality_weights={"touch": 0.3}))
    torch.testing.assert_close(controller.context.goal, agent.encode(HOME, {"touch": 0.3}))


def test_the_weight_of_a_drive_is_also_that_of_its_critic(config):
    task = Task(drives={"hunger": 2.0, "pain": 0.25})
    for value_critics, ahead in (
        (ValueCriticsConfig(hidden=8), {"critic_hunger": 2.0, "critic_pain": 0.25}),
        (None, {}),
    ):
        agent = make_policy(override(config, {"cost.value_critics": value_critics}))
        controller = agent.controller(tensors=True)
        controller.set_task(task)
        assert controller.context.weights == {"control_cost": 0.5, **task.drives, **ahead}


def test_the_weights_of_the_drives_are_a_tensor_as_the_goal_is(agent):
    task = Task(drives={"pain": 0.25}, weights={"control_cost": 7.0})
    found = agent.configurator.context(task, torch.zeros(1, 4, dtype=torch.float64)).drive_weights
    torch.testing.assert_close(found, torch.tensor([0.0, 0.25], dtype=torch.float64))


def test_the_weight_that_a_task_gives_to_a_cost_by_name_comes_first(agent):
    wish = Task(
        goal=HOME,
        drives={"pain": 2.0},
        weights={"critic_pain": 0.5, "control_cost": 7.0, "goal_distance": 1.0},
    )
    controller = agent.controller(tensors=True)
    controller.set_task(wish)
    target = {"control_cost": 7.0, "pain": 2.0, "critic_pain": 0.5, "goal_distance": 1.0}
    assert target.items() <= controller.context.weights.items()


def test_the_task_vector_holds_the_named_weights_in_their_order(agent):
    output = []
    controller = agent.controller(tensors=True)
    for task in (EAT, Task(drives={"pain": 0.5}), Task(goal=HOME, drives={"hunger": 4.0})):
        controller.set_task(replace(task, mode="react"))
        output.append((controller.context.task_vector[0].tolist(), controller.act(sensed()).action))
    assert [numbers for numbers, _ in output] == [[0, 0, 1], [0.5, 0, 0], [0, 2, 4]]
    assert not torch.allclose(output[0][1], output[1][1])


def test_a_limit_is_a_penalty_on_what_exceeds_it(agent):
    controller = agent.controller(tensors=True)
    controller.set_task(EAT)
    free = controller.act(sensed())
    assert not free.violation.any()
    for most, violated in ((1e6, False), (-1e6, True)):
        controller.set_task(replace(EAT, limits={"pain": most}))
        plan = controller.act(sensed())
        torch.testing.assert_close(plan.terms["limit pain"], plan.violation)
        assert ((plan.violation > 0) == violated).all()


def test_a_modality_of_weight_0_cannot_change_the_state_and_every_other_weight_does(agent):
    controller = agent.controller(tensors=True)

    def state_of(obs: Mapping[str, Tensor], **attend: float) -> Tensor:
        controller.set_task(replace(EAT, modality_weights=attend))
        controller.reset()
        return controller.perceive(obs)[0]

    here, pinched = sensed(), {**sensed(), "touch": sensed(1)["touch"]}
    assert not torch.allclose(state_of(here), state_of(pinched))
    assert torch.equal(state_of(here, touch=0.0), state_of(pinched, touch=0.0))
    assert not torch.allclose(state_of(here), state_of(here, touch=0.5))
    assert not torch.allclose(state_of(here), state_of(here, sight=0.0))
    torch.testing.assert_close(state_of(here), state_of(here, touch=1.0, sight=1.0))


def test_the_modality_weights_of_the_task_replace_those_of_the_settings(config):
    settings = replace(config.configurator, modality_weights={"touch": 0.5, "sight": 0.25})
    agent = make_policy(replace(config, configurator=settings))
    controller = agent.controller(tensors=True)
    controller.set_task(replace(EAT, modality_weights={"touch": 2.0}))
    assert controller.context.modality_weights == {"touch": 2.0, "sight": 0.25}
    controller.set_task(EAT)
    assert controller.context.modality_weights == {"touch": 0.5, "sight": 0.25}
    torch.testing.assert_close(controller.perceive(sensed())[0], agent.encode(sensed()))


@pytest.mark.parametrize(
    "task",
    [
        Task(drives={"pain": 3.0}, mode="react"),
        Task(goal=HOME, limits={"pain": 0.1}),
        replace(EAT, modality_weights={"touch": 1.0}),  # which is as it was
    ],
)
def test_a_new_task_within_an_episode_keeps_the_short_term_memory(agent, task):
    controller = agent.controller(tensors=True)
    controller.set_task(EAT)
    states = []
    for between in (lambda: None, lambda: controller.set_task(task), controller.reset):
        controller.reset()
        controller.perceive(sensed(1))
        between()
        states.append(controller.perceive(sensed(2))[0])
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    assert not torch.allclose(states[0], states[2])


def test_other_modality_weights_reset_the_short_term_memory(agent):
    controller = agent.controller(tensors=True)
    controller.set_task(EAT)
    controller.perceive(sensed(1))
    controller.set_task(replace(EAT, modality_weights={"touch": 0.5}))
    here, _ = controller.perceive(sensed(2))
    torch.testing.assert_close(here, agent.encode(sensed(2), {"touch": 0.5}))


def test_one_goal_serves_many_envs_and_two_do_not_serve_three(agent):
    controller = agent.controller(tensors=True)
    controller.set_task(Task(goal=sensed(7, num_envs=1)))
    _, context = controller.perceive(sensed(num_envs=3))
    assert (
        len(context.goal),
        len(context.task_vector),
        len(context.episode_states),
        len(context.step_scale),
    ) == (3,) * 4
    assert torch.equal(context.goal, controller.context.goal.expand(3, -1))
    assert controller.act(sensed(num_envs=3)).action.shape == (3, 2)
    controller.set_task(Task(goal=HOME))
    with pytest.raises(ConfigError, match="3 observations, but 2 goals"):
        controller.act(sensed(num_envs=3))


def test_the_task_sets_the_cvar_level_or_leaves_it_to_the_settings(config):
    agent = make_policy(replace(config, configurator=replace(config.configurator, cvar_alpha=0.5)))
    controller = agent.controller(tensors=True)
    for output, counted in ((None, 0.5), (0.0, 0.0), (1.0, 1.0)):
        controller.set_task(replace(EAT, cvar_alpha=output))
        assert controller.context.cvar_alpha == counted
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="cvar_alpha is"):
            controller.set_task(replace(EAT, cvar_alpha=wrong))
        with pytest.raises(ConfigError, match="cvar_alpha is"):
            replace(config.configurator, cvar_alpha=wrong)


class Named:
    """Environments that name a goal in their info."""

    def goal(self, info: Mapping[str, Mapping[str, Tensor]]) -> Mapping[str, Tensor] | None:
        return info.get("goal")


def test_a_task_spec_is_a_task_in_the_envs_where_it_is_given():
    numbers = count(1)
    given = {
        name: {"pain": float(next(numbers))}
        for name in ("drives", "limits", "modality_weights", "weights")
    }
    output = {**given, "mode": "auto", "horizon": 5, "cvar_alpha": 0.5}
    there = EpisodeStart(Named(), sensed(), {"goal": HOME})
    for aim, scene, goal in (
        ("none", there, None),
        ("current", there, there.obs),
        ("env", there, HOME),
    ):
        spec = TaskSpec(goal_source=aim, horizon=5, cvar_alpha=0.5, **given)
        task = TaskTracker(spec).task(scene, "auto")
        assert task.goal is goal
        assert {name: getattr(task, name) for name in output} == output
