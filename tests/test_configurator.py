"""A task sets every box; one that makes no sense is refused in one line that names the choices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import count

import pytest
import torch
from torch import Tensor

from ami_agent import recipes
from ami_agent.agent import Agent
from ami_agent.build import Config, build
from ami_agent.life import Sense, Spec
from ami_agent.players import Scene, task_of
from modules.configurator import Assignment, Configurator, Task
from modules.cost import Critic, Foresight, NoForesight
from modules.dynamics import VectorDynamics
from modules.perception import Senses
from modules.recall import Belief
from modules.types import UnusableInput
from modules.world_model import Feeling, WorldModel

BODY = Spec(
    {"sight": Sense((4,), torch.float32), "touch": Sense((3,), torch.float32)},
    2,
    ("reward", "energy", "damage"),
)
EAT = Task(drives={"hunger": 1.0})


@pytest.fixture
def config() -> Config:
    """A mind for this body with all there is."""
    return replace(
        recipes.two_rooms(),
        perception=Senses.Config(hidden=8, vector=4),
        recall=Belief.Config(hidden=4),
        world_model=WorldModel.Config(
            dynamics=VectorDynamics.Config(hidden=8), feeling=Feeling.Config(hidden=4)
        ),
        drives=("hunger", "pain"),
        critic=Critic.Config(),
        foresight=Foresight.Config(hidden=8),
        configurator=Configurator.Config(
            reach=2.0, effort=0.5, critic=3.0, told=("pain", "reach", "hunger")
        ),
        tasks={"eat": Assignment(drives={"hunger": 1.0})},
    )


def mind(config: Config) -> Agent:
    """One in which everything matters, as after some learning."""
    agent = build(config, BODY).eval()
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=dice))
    return agent


@pytest.fixture
def agent(config: Config) -> Agent:
    return mind(config)


def sensed(seed: int = 0, worlds: int = 2) -> dict[str, Tensor]:
    dice = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(worlds, *sense.shape, generator=dice)
        for name, sense in BODY.senses.items()
    }


HOME = sensed(7)
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("wish", "complaint"),
    [
        ({"drives": {"greed": 1.0}}, "weight of the drive 'greed': there are hunger, pain$"),
        ({"drives": {"pain": -1.0}}, r"weight of the drive 'pain' is -1\.0; it must be 0 or more$"),
        ({"drives": {"pain": NAN}}, "weight of the drive 'pain' is nan; it must be 0 or more$"),
        ({"drives": {"pain": INF}}, "weight of the drive 'pain' is inf; it must be 0 or more$"),
        ({"attend": {"smell": 1.0}}, "gain of the sense 'smell': there are sight, touch$"),
        ({"attend": {"touch": -0.5}}, r"gain of the sense 'touch' is -0\.5; it must be 0 or more$"),
        ({"attend": {"touch": NAN}}, "gain of the sense 'touch' is nan; it must be 0 or more$"),
        ({"limits": {"greed": 1.0}}, "limit of the drive 'greed': there are hunger, pain$"),
        ({"limits": {"pain": NAN}}, "limit of 'pain' is nan; it must be a finite number$"),
        ({"weights": {"greed": 1.0}}, "'greed'; there are reach, .*hunger, pain, critic_hunger, "),
        ({"weights": {"pain": NAN}}, "weight of 'pain' is nan; it must be 0 or more$"),
        ({"weights": {"effort": 0.0}, "drives": {}}, "nothing is wanted: weigh .*'critic_pain'"),
        (
            {"goal": {**HOME, "touch": torch.zeros(2, 5)}},
            r"the goal is sight \(2, 4\).*touch \(2, 5\).*must be a batch of sight \(4,\).*\(3,\)",
        ),
        ({"goal": {"sight": HOME["sight"]}}, r"the goal is sight \(2, 4\) .*touch \(3,\)"),
        ({"goal": HOME["sight"]}, r"the goal is \(2, 4\) .*must be a batch of sight \(4,\)"),
        ({"mode": "sleep"}, "no mode 'sleep'; there are react, plan, auto$"),
    ],
)
def test_what_makes_no_sense_gets_one_line_and_the_old_task_stays(agent, wish, complaint):
    agent.configure(EAT)
    before = agent.focus
    with pytest.raises(UnusableInput, match=complaint) as caught:
        agent.configure(replace(EAT, **wish))
    assert "\n" not in str(caught.value)
    assert agent.focus is before


def test_who_has_no_drives_is_told_so(config):
    config = replace(
        config,
        drives=(),
        foresight=NoForesight.Config(),
        configurator=Configurator.Config(),
        tasks={"come": Assignment(aim="world")},
    )
    with pytest.raises(UnusableInput, match=r"'hunger': this agent has none$"):
        mind(config).configure(EAT)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"drives": ("hunger", "thirst")}, "'thirst'; there are hunger, pain, "),
        ({"drives": ()}, "foresight is of drives, and there are none; it must be NoForesight$"),
        ({"tasks": {}}, "needs at least one task"),
        (
            {"tasks": {"hide": Assignment(drives={"fear": 1.0})}},
            "^task 'hide': weight of the drive 'fear': there are hunger, pain$",
        ),
        (
            {"tasks": {"hide": Assignment(drives={"pain": 1.0}, attend={"smell": 0.0})}},
            "^task 'hide': gain of the sense 'smell': there are sight, touch$",
        ),
        (
            {"configurator": Configurator.Config(attend={"smell": 2.0})},
            "gain of the sense 'smell': there are sight, touch$",
        ),
        (
            {"configurator": Configurator.Config(told=("fear",))},
            "configurator.told: .*'fear'; there are reach, effort",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused_when_the_mind_is_built(config, changes, complaint):
    with pytest.raises(UnusableInput, match=complaint):
        build(replace(config, **changes), BODY)


def test_a_drive_that_this_body_cannot_feel_is_refused_and_told_what_it_feels(config):
    numb = BODY._replace(interoception=("reward", "energy"))
    with pytest.raises(
        UnusableInput, match=r"'pain' feels 'damage',.* it declares reward, energy$"
    ):
        build(config, numb)


def test_without_a_goal_there_is_nothing_to_reach(agent):
    agent.configure(EAT)
    assert {"reach", "critic"}.isdisjoint(agent.focus.weights)
    assert set(agent.act(sensed()).terms) == {"effort", "hunger", "critic_hunger"}
    agent.configure(replace(EAT, goal=HOME))
    weights = agent.focus.weights
    assert (weights["reach"], weights["effort"], weights["critic"]) == (2.0, 0.5, 3.0)
    assert {"reach", "critic", "hunger"} < set(agent.act(sensed()).terms)


def test_the_goal_is_the_state_it_would_be_perceived_as(agent):
    agent.configure(Task(goal=HOME))
    torch.testing.assert_close(agent.focus.goal, agent.perceive(HOME))
    agent.configure(Task(goal=HOME, attend={"touch": 0.3}))
    torch.testing.assert_close(agent.focus.goal, agent.perceive(HOME, {"touch": 0.3}))


def test_the_weight_of_a_drive_is_also_that_of_its_critic(config):
    task = Task(drives={"hunger": 2.0, "pain": 0.25})
    for foresight, ahead in (
        (Foresight.Config(hidden=8), {"critic_hunger": 2.0, "critic_pain": 0.25}),
        (NoForesight.Config(), {}),
    ):
        agent = mind(replace(config, foresight=foresight))
        agent.configure(task)
        assert agent.focus.weights == {"effort": 0.5, **task.drives, **ahead}


def test_what_the_task_says_of_a_cost_by_its_name_goes_before_all_else(agent):
    wish = Task(drives={"pain": 2.0}, weights={"critic_pain": 0.5, "effort": 7.0, "reach": 1.0})
    agent.configure(wish)
    wanted = {"effort": 7.0, "pain": 2.0, "critic_pain": 0.5, "reach": 1.0}
    assert agent.focus.weights == wanted


def test_the_policy_is_told_the_weights_that_the_settings_name_in_their_order(agent):
    told = []
    for task in (EAT, Task(drives={"pain": 0.5}), Task(goal=HOME, drives={"hunger": 4.0})):
        agent.configure(replace(task, mode="react"))
        told.append((agent.focus.condition[0].tolist(), agent.act(sensed()).action))
    assert [numbers for numbers, _ in told] == [[0, 0, 1], [0.5, 0, 0], [0, 2, 4]]
    assert not torch.allclose(told[0][1], told[1][1])


def test_a_limit_is_a_price_on_what_exceeds_it(agent):
    agent.configure(EAT)
    free = agent.act(sensed())
    assert not free.violation.any()
    for most, violated in ((1e6, False), (-1e6, True)):
        agent.configure(replace(EAT, limits={"pain": most}))
        plan = agent.act(sensed())
        torch.testing.assert_close(plan.terms["limit pain"], plan.violation)
        assert ((plan.violation > 0) == violated).all()


def test_a_sense_of_gain_0_cannot_change_the_state_and_every_other_gain_does(agent):
    def state_of(obs: Mapping[str, Tensor], **attend: float) -> Tensor:
        agent.configure(replace(EAT, attend=attend))
        agent.begin()
        return agent.attend(obs)[0]

    here, pinched = sensed(), {**sensed(), "touch": sensed(1)["touch"]}
    assert not torch.allclose(state_of(here), state_of(pinched))
    assert torch.equal(state_of(here, touch=0.0), state_of(pinched, touch=0.0))
    assert not torch.allclose(state_of(here), state_of(here, touch=0.5))
    assert not torch.allclose(state_of(here), state_of(here, sight=0.0))
    torch.testing.assert_close(state_of(here), state_of(here, touch=1.0, sight=1.0))


def test_the_task_attends_otherwise_than_the_settings_where_it_says_so(config):
    settings = replace(config.configurator, attend={"touch": 0.5, "sight": 0.25})
    agent = mind(replace(config, configurator=settings))
    agent.configure(replace(EAT, attend={"touch": 2.0}))
    assert agent.focus.gains == {"touch": 2.0, "sight": 0.25}
    agent.configure(EAT)
    assert agent.focus.gains == {"touch": 0.5, "sight": 0.25}
    torch.testing.assert_close(agent.attend(sensed())[0], agent.perceive(sensed()))


@pytest.mark.parametrize(
    "task",
    [
        Task(drives={"pain": 3.0}, mode="react"),
        Task(goal=HOME, limits={"pain": 0.1}),
        replace(EAT, attend={"touch": 1.0}),  # which is as it was
    ],
)
def test_a_new_task_in_the_middle_of_an_episode_keeps_what_is_recalled(agent, task):
    agent.configure(EAT)
    states = []
    for between in (lambda: None, lambda: agent.configure(task), agent.begin):
        agent.begin()
        agent.attend(sensed(1))
        between()
        states.append(agent.attend(sensed(2))[0])
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    assert not torch.allclose(states[0], states[2])


def test_who_is_primed_otherwise_does_not_recall_what_was_seen_with_other_eyes(agent):
    agent.configure(EAT)
    agent.attend(sensed(1))
    agent.configure(replace(EAT, attend={"touch": 0.5}))
    here, _ = agent.attend(sensed(2))
    torch.testing.assert_close(here, agent.perceive(sensed(2), {"touch": 0.5}))


def test_one_goal_does_for_many_worlds_and_two_do_not_for_three(agent):
    agent.configure(Task(goal=sensed(7, worlds=1)))
    _, focus = agent.attend(sensed(worlds=3))
    assert (len(focus.goal), len(focus.condition), len(focus.lived), len(focus.pace)) == (3,) * 4
    assert torch.equal(focus.goal, agent.focus.goal.expand(3, -1))
    assert agent.act(sensed(worlds=3)).action.shape == (3, 2)
    agent.configure(Task(goal=HOME))
    with pytest.raises(UnusableInput, match="3 observations, but 2 goals"):
        agent.act(sensed(worlds=3))


def test_the_task_says_which_share_of_the_worst_counts_or_leaves_it_to_the_agent(config):
    agent = mind(replace(config, configurator=replace(config.configurator, tail=0.5)))
    for told, counted in ((None, 0.5), (0.0, 0.0), (1.0, 1.0)):
        agent.configure(replace(EAT, tail=told))
        assert agent.focus.tail == counted
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(UnusableInput, match="tail is"):
            agent.configure(replace(EAT, tail=wrong))
        with pytest.raises(UnusableInput, match="tail is"):
            replace(config.configurator, tail=wrong)


class Named:
    """Worlds that name a goal in their info."""

    def goal(self, info: Mapping[str, Mapping[str, Tensor]]) -> Mapping[str, Tensor] | None:
        return info.get("goal")


def test_an_assignment_is_a_task_in_the_worlds_where_it_is_given():
    numbers = count(1)
    given = {
        name: {"pain": float(next(numbers))} for name in ("drives", "limits", "attend", "weights")
    }
    told = {**given, "mode": "auto", "horizon": 5, "tail": 0.5}
    there = Scene(Named(), sensed(), {"goal": HOME})
    for aim, scene, goal in (
        ("none", there, None),
        ("here", there, there.obs),
        ("world", there, HOME),
    ):
        task = task_of(Assignment(aim=aim, horizon=5, tail=0.5, **given), scene, "auto")
        assert task.goal is goal
        assert {name: getattr(task, name) for name in told} == told
