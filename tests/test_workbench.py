"""The workbench: what a person changes, the agent plans for at once, and nothing else changes."""

from __future__ import annotations

import base64
import io
from contextlib import closing
from itertools import count
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from PIL import Image

from ami_agent import recipes
from ami_agent.adapters.env import EnvConfig
from ami_agent.config import build, override
from ami_agent.logger import Logger
from ami_agent.storage import run_dir
from ami_agent.viewer.camera import Camera
from ami_agent.viewer.projectors import PCAProjector, make_projector_factory
from ami_agent.viewer.record import EpisodeSelection, record_episodes
from ami_agent.viewer.workbench import core
from ami_agent.viewer.workbench.core import Side, Workbench
from ami_agent.viewer.workbench.description import describe, describe_branch
from ami_agent.viewer.workbench.simulator import Simulator
from modules.configurator import TaskSpec
from modules.types import ConfigError, Rollout
from tests.conftest import small, tiny_gym

RUN = Path(__file__).parents[1] / "runs/reference/two-rooms"


@pytest.fixture(scope="module")
def run():
    """The run that ships: agent, settings and how its states are drawn."""
    config = run_dir.config_of(RUN, (), False)
    agent = run_dir.load(RUN, "cpu", config)
    factory = make_projector_factory(agent, config.eval_env, 0, agent.task_spec(""), lambda _: None)
    return agent, config, factory.camera, factory.fit([])


@pytest.fixture
def bench(run):
    agent, config, camera, projector = run
    side = Side("agent", agent, config, projector)
    with closing(Workbench([side], config.eval_env, camera, "", "plan")) as bench:
        bench.begin_own(0)
        yield bench


def side_plan(bench, side=0):
    return bench.node.side_plans[side]


def pixels(moment):
    (picture,) = moment.pictures
    data = base64.b64decode(picture.address.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


def test_the_workbench_plans_as_the_agent_does_in_an_episode(run, bench):
    agent, config, *_ = run
    selection = EpisodeSelection(episodes=1, seed=0, max_steps=6)
    ((recorded,),) = record_episodes(agent, config.eval_env, None, selection, Logger())
    for step, state in zip(recorded.recorded_steps, recorded.states, strict=True):
        assert torch.equal(side_plan(bench).state[0], state)
        assert torch.equal(side_plan(bench).plan.action[0], step.action)
        bench.step()


def test_an_episode_goes_on_from_an_earlier_moment_as_it_did_before(bench):
    for _ in range(5):
        bench.step()
    there = bench.node
    for _ in range(3):
        bench.back()
    bench.branch()
    for _ in range(3):
        bench.step()
    assert bench.current != there.id
    assert torch.equal(bench.node.moment.obs, there.moment.obs)
    assert torch.equal(side_plan(bench).plan.actions, there.side_plans[0].plan.actions)
    before, after = bench.branches()
    assert [node.moment.step for node in before] == [0, 1, 2, 3, 4, 5]
    assert [node.moment.step for node in after] == [2, 3, 4, 5]
    assert after[0].label == "branch"
    bench.go_to(before[4].id)
    bench.step()
    assert bench.current == there.id  # a step that was taken before is not taken again


class Fickle(gymnasium.Env):
    """What it observes depends on how often it was reset."""

    observation_space = gymnasium.spaces.Box(-10, 10, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    resets = count()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.steps = np.full(3, 0.01 * next(self.resets), np.float32), 0
        return self.at, {}

    def step(self, action):
        self.steps += 1
        self.at = self.at + np.append(0.1 * np.asarray(action), 0.01).astype(np.float32)
        return self.at, 0.5, self.steps == 8, False, {}


@pytest.fixture
def fickle():
    gymnasium.register("test/Fickle-v0", Fickle)
    yield from open_bench(EnvConfig(id="test/Fickle-v0"))
    del gymnasium.registry["test/Fickle-v0"]


def open_bench(env: EnvConfig):
    config = tiny_gym(env)
    with closing(env.build(1)) as one:
        agent = build(config, one.spec, seed=0)
    selection = EpisodeSelection(episodes=1, seed=0, max_steps=5)
    projector = PCAProjector(next(record_episodes(agent, env, None, selection, Logger())))
    side = Side("agent", agent, config, projector)
    with closing(Workbench([side], env, None, "", "plan")) as bench:
        bench.begin_own(0)
        yield bench


def test_an_environment_that_cannot_be_put_back_says_so_and_goes_on_from_its_last_step(fickle):
    bench = fickle
    bench.step()
    bench.step()
    bench.back()
    bench.change(0, "horizon", "", 1)  # planning needs no environment
    assert side_plan(bench).plan.actions.shape[1] == 1
    shown, nodes = bench.current, dict(bench.nodes)
    with pytest.raises(ConfigError, match=r"test/Fickle-v0 can't be put back: 1 replayed actions"):
        bench.step()
    assert (bench.current, bench.nodes) == (shown, nodes)
    bench.go_to(2)
    bench.step()
    assert bench.node.moment.step == 3
    assert bench.node.moment.total_reward == 1.5
    with pytest.raises(ConfigError, match="tells no positions"):
        bench.place("agent", (10, 10), "drag")
    drawn = describe(bench)["node"]
    assert (drawn["picture"], drawn["goal"], drawn["size"]) == (None, None, (400, 400))
    assert len(drawn["path"]) == 2 * 4


def test_the_end_of_an_episode_is_the_end_of_a_branch(fickle):
    bench = fickle
    for _ in range(8):
        bench.step()
    assert bench.node.moment.done
    with pytest.raises(ConfigError, match="the episode has ended here"):
        bench.step()
    for _ in range(8):
        bench.back()
    with pytest.raises(ConfigError, match="the beginning"):
        bench.back()


def test_a_goal_that_is_dragged_is_planned_for_and_the_plan_before_is_kept(bench):
    bench.step()
    start, projector = bench.node, bench.sides[0].projector
    position = bench.simulator.xy(start.moment.factors)
    for x in (250.0, 240.0, 230.0):
        bench.place("goal", (x, 60.0), "drag 1", is_final=x == 230.0)
    node = bench.node
    goal = bench.simulator.xy(node.moment.goal_factors)
    np.testing.assert_allclose(goal, (230, 60), atol=0.2)
    np.testing.assert_allclose(bench.simulator.xy(node.moment.factors), position, atol=0.2)
    assert len(bench.nodes) == 3  # one drag, one branch
    assert node.before[0] is start.side_plans[0]
    assert bench.nodes[start.id] is start

    def distance(of):
        return np.linalg.norm(projector(of.plan.states)[0, -1] - goal)

    assert distance(node.side_plans[0]) < distance(start.side_plans[0]) - 20
    # the green ring is drawn where the goal is
    picture = pixels(node.moment)
    ring = np.argwhere(picture[..., 1] > picture[..., [0, 2]].max(-1) + 40)
    np.testing.assert_allclose(ring.mean(0), goal[::-1], atol=3)
    bench.place("goal", (200.0, 60.0), "drag 2")
    assert len(bench.nodes) == 4
    bench.step()
    assert bench.node.moment.step == 2


def test_the_picture_waits_for_the_end_of_a_drag(bench):
    before = bench.node.moment
    bench.place("agent", (250.0, 60.0), "drag", is_final=False)
    assert bench.node.moment.pictures is before.pictures
    bench.place("agent", (250.0, 60.0), "drag")
    assert not np.array_equal(pixels(bench.node.moment), pixels(before))


def test_an_agent_that_is_dragged_perceives_and_acts_from_there(bench):
    bench.step()
    bench.place("agent", (250.0, 60.0), "drag")
    np.testing.assert_allclose(bench.simulator.xy(bench.node.moment.factors), (250, 60), atol=0.2)
    assert not torch.equal(side_plan(bench).state, bench.node.before[0].state)
    bench.step()
    x, y, *after = describe(bench)["node"]["path"]  # which begins where the agent was put
    assert len(after) == 2
    assert (x, y) == (pytest.approx(250, abs=0.2), pytest.approx(60, abs=0.2))
    position = bench.simulator.xy(bench.node.moment.factors)
    assert 1 < np.linalg.norm(position - (250, 60)) < 20


def test_a_place_inside_a_wall_is_refused_and_nothing_changes(bench):
    bench.step()
    before = (bench.current, bench.version, dict(bench.nodes))
    for what in ("agent", "goal"):
        with pytest.raises(ConfigError, match=rf"the {what} can't be there: .* inside the wall"):
            bench.place(what, (160.0, 20.0), "drag")
    assert (bench.current, bench.version, bench.nodes) == before
    bench.step()
    assert bench.node.moment.step == 2


def test_a_position_outside_is_the_nearest_inside(bench):
    bench.place("goal", (-50.0, 900.0), "drag")
    x, y = bench.simulator.xy(bench.node.moment.goal_factors)
    assert 15 < x < 30
    assert 285 < y < 305


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        ("WindyRooms", ("", "")), ("Maze", ("", "")),
        ("Reach", ("", "a goal of ami/Reach-v0 is about more than a position")),
        ("Push", ("", "a goal of ami/Push-v0 is about more than a position")),
        ("Forage", ("", "ami/Forage-v0 has no goal that can be dragged")),
    ],
)  # fmt: skip
def test_what_can_be_dragged_where(name, reasons):
    if name in ("Reach", "Push"):
        pytest.importorskip("mujoco")
    env = EnvConfig(id=f"ami/{name}-v0")
    with closing(Simulator(env, Camera(), TaskSpec(goal_source="none"))) as simulator:
        moment = simulator.begin(3)
        assert tuple(simulator.obstacles.values()) == reasons
        if name != "Reach":  # an arm has its elbow somewhere
            xy = simulator.xy(moment.factors) + np.array([5.0, -4.0])
            placed = simulator.place(moment, "agent", xy)
            np.testing.assert_allclose(simulator.xy(placed.factors), xy, atol=0.5)


def test_a_weight_changes_the_energy_by_that_factor_and_back(bench):
    before = side_plan(bench)
    bench.change(0, "weight", "critic", "0.5")
    halved = side_plan(bench)
    assert halved.context.weights["critic"] == 0.5
    rollout = Rollout(
        halved.plan.states[:, None], halved.plan.actions[:, None],
        halved.plan.actions[:, None, :, :0], halved.plan.actions[:, None, :, :0],
    )  # fmt: skip
    whole = before.agent.cost(rollout, before.context)["critic"]
    torch.testing.assert_close(halved.plan.terms["critic"], 0.5 * whole[:, 0])
    bench.change(0, "weight", "critic", 1)
    assert torch.equal(side_plan(bench).plan.actions, before.plan.actions)
    assert len(bench.nodes) == 2  # beside the agent's own episode


def test_a_change_where_the_episode_goes_on_leaves_it_as_it_was(bench):
    bench.step()
    bench.step()
    bench.back()
    old = bench.node
    bench.change(0, "horizon", "", "3")
    assert bench.nodes[old.id].side_plans[0] is old.side_plans[0]
    assert bench.node.parent == old.parent
    assert side_plan(bench).plan.actions.shape[1] == 3
    bench.step()
    assert side_plan(bench).plan.actions.shape[1] == 3  # the settings stay
    bench.go_to(old.id)
    bench.step()
    assert side_plan(bench).plan.actions.shape[1] == 8  # those that the moment was planned with


def test_an_edited_action_stays_and_what_follows_is_planned_from_its_outcome(bench):
    before = side_plan(bench)
    bench.edit_action(1, ["0", 3.0])
    edited = side_plan(bench)
    assert torch.equal(edited.plan.actions[:, 0], before.plan.actions[:, 0])
    torch.testing.assert_close(edited.plan.actions[0, 1], torch.tensor([0.0, 1.0]))  # in the ball
    imagined = before.agent.world_model.imagine(before.state, edited.plan.actions[:, None]).states
    torch.testing.assert_close(edited.plan.states, imagined[:, 0])
    # planned anew, so no worse than to go on with the old actions
    actions = before.plan.actions.clone()
    actions[0, 1] = torch.tensor([0.0, 1.0])
    kept = before.agent.evaluator.evaluate(before.state, actions[:, None], before.context)
    assert float(edited.plan.energy) < float(kept.energy)
    assert edited.edited == 1
    assert bench.node.before[0] is before
    bench.edit_action(0, [0.0, -1.0])
    bench.step()
    torch.testing.assert_close(bench.node.moment.actions[-1], torch.tensor([[0.0, -1.0]]))


def test_the_rest_of_a_plan_that_was_edited_is_not_executed(run):
    """Of an agent that executes four actions of a plan before it plans again."""
    _, config, camera, projector = run
    tasks = {"stay": TaskSpec(goal_source="current")}
    config = override(config, {"actor.receding_horizon": 4, "tasks": tasks})
    side = Side("agent", run_dir.load(RUN, "cpu", config), config, projector)
    with closing(Workbench([side], config.eval_env, camera, "", "plan")) as bench:
        bench.begin(0)
        bench.step()
        assert side_plan(bench).plan.actions.shape[1] == 7  # the rest
        bench.back()
        bench.edit_action(0, [0.0, 1.0])
        bench.step()
        assert side_plan(bench).plan.actions.shape[1] == 8  # a new plan
        bench.step()
        assert side_plan(bench).plan.actions.shape[1] == 7
        bench.place("agent", (250.0, 60.0), "drag")
        assert side_plan(bench).plan.actions.shape[1] == 8


def test_a_part_that_is_taken_out_costs_nothing_any_more(bench):
    bench.change(0, "without", "goal_critic", True)
    assert set(side_plan(bench).plan.terms) == {"goal_distance"}
    bench.change(0, "without", "policy_proposal", True)
    assert side_plan(bench).plan.candidate_energies.shape == (1, 4)  # 4 of the planner
    bench.change(0, "without", "goal_critic", False)
    bench.change(0, "without", "policy_proposal", False)
    assert set(side_plan(bench).plan.terms) == {"goal_distance", "critic"}
    assert side_plan(bench).plan.candidate_energies.shape == (1, 5)


def test_another_planner_and_mode_plan_in_the_same_state(bench):
    before = side_plan(bench)
    bench.change(0, "planner", "", "CEM")
    assert type(side_plan(bench).agent.planner).__name__ == "CEM"
    assert torch.equal(side_plan(bench).state, before.state)
    assert not torch.equal(side_plan(bench).plan.actions, before.plan.actions)
    mine, shared = side_plan(bench).agent.state_dict(), before.agent.state_dict()
    assert all(mine[name].data_ptr() == shared[name].data_ptr() for name in mine)
    bench.change(0, "mode", "", "react")
    assert side_plan(bench).plan.actions.shape[1] == 1
    bench.edit_action(0, [1.0, 0.0])
    assert side_plan(bench).plan.states.shape[1] == 2  # what the model predicts of it
    describe(bench)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("weight", "critic", "abc"),
            "the weight of 'critic' is 'abc'; it must be a number from 0",
        ),
        (("weight", "critic", "-1"), "it must be a number from 0 to 1e"),
        (("weight", "critic", "nan"), "it must be a number from 0 to 1e"),
        (("weight", "critic", True), "it must be a number from 0 to 1e"),
        (("weight", "hunger", 1), "no cost is called 'hunger'; there are goal_distance"),
        (("weight", "x" * 101, 1), "a name has at most 100 characters"),
        (("drive", "hunger", 1), "weight of the drive 'hunger': this agent has none"),
        (("horizon", "", "2.5"), "the horizon is '2.5'; it must be a whole number from 1 to 200"),
        (("horizon", "", 1e9), "it must be a whole number from 1 to 200"),
        (("iterations", "", ""), "the number of iterations is ''; it must be a whole number"),
        (("cvar_alpha", "", 1.5), "the level of risk is 1.5; it must be a number from 0 to 1"),
        (("mode", "", "sleep"), "no mode 'sleep'; there are react, plan, auto"),
        (("planner", "", "Chess"), "no planner 'Chess'; there are GradientPlanner, Colloc"),
        (("planner", "", "TreeSearch"), "chooses among discrete actions"),
        (("without", "engine", True), "no part 'engine' to take out; there are goal_critic"),
        (("colour", "", 1), "there is no setting 'colour'"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_and_nothing_changes(bench, change, message):
    before = (bench.current, bench.version, dict(bench.nodes), list(bench.settings))
    with pytest.raises(ConfigError) as raised:
        bench.change(0, *change)
    assert message in str(raised.value)
    assert (bench.current, bench.version, bench.nodes, bench.settings) == before


def test_all_weights_zero_and_wrong_actions_are_refused(bench):
    bench.change(0, "weight", "critic", 0)
    with pytest.raises(ConfigError, match="no cost has a weight above 0"):
        bench.change(0, "weight", "goal_distance", 0)
    for action in ([1.0], [1.0, "x"], [1.0, float("nan")], None, [0.0, 0.0, 0.0]):
        with pytest.raises(ConfigError, match="an action is 2 finite numbers"):
            bench.edit_action(0, action)
    for step in (8, -1, "0"):
        with pytest.raises(ConfigError, match="the plan has 8 actions"):
            bench.edit_action(step, [0.0, 0.0])
    for node in (99, "0", None):
        with pytest.raises(ConfigError, match="there is no such moment"):
            bench.go_to(node)
    with pytest.raises(ConfigError, match="there is no such side"):
        bench.change(1, "horizon", "", 3)
    with pytest.raises(ConfigError, match="to a position"):
        bench.place("goal", (float("nan"), 0.0), "drag")


def test_two_settings_plan_in_the_same_state_and_the_first_acts(bench):
    bench.compare(True)
    assert torch.equal(side_plan(bench).plan.actions, side_plan(bench, 1).plan.actions)
    bench.change(1, "weight", "critic", 0)
    assert torch.equal(side_plan(bench, 1).state, side_plan(bench).state)
    assert set(side_plan(bench, 1).plan.terms) == {"goal_distance"}
    assert set(side_plan(bench).plan.terms) == {"goal_distance", "critic"}
    action = side_plan(bench).plan.action
    bench.step()
    assert torch.equal(bench.node.action, action)
    assert set(side_plan(bench, 1).plan.terms) == {"goal_distance"}
    drawn = describe(bench)["node"]["side_plans"]
    assert [len(each["planned"]) for each in drawn] == [18, 18]
    bench.compare(False)
    assert list(bench.node.side_plans) == [0]
    second = bench.second
    bench.compare(True)
    assert bench.sides[1] is second


def test_a_second_side_remembers_the_episode_too():
    config = small(recipes.cue_corridor())
    env = config.eval_env
    with closing(env.build(1)) as one:
        agent = build(config, one.spec, seed=0)
    assert config.memory.short_term is not None
    selection = EpisodeSelection(episodes=1, seed=0, max_steps=4)
    projector = PCAProjector(next(record_episodes(agent, env, None, selection, Logger())))
    side = Side("agent", agent, config, projector)
    with closing(Workbench([side], env, None, "", "plan")) as bench:
        bench.begin(0)
        for _ in range(3):
            bench.step()
        bench.compare(True)
        assert torch.equal(side_plan(bench, 1).state, side_plan(bench).state)
        blank = agent.encode(bench.node.moment.obs)
        assert not torch.allclose(blank, side_plan(bench).state)


def test_the_agents_own_episode_is_shown_until_something_else_is(bench):
    action, state = torch.tensor([[1.0, 0.0]]), side_plan(bench).state
    bench.follow(state, action)
    assert (bench.current, bench.tip) == (1, 1)
    with pytest.raises(ConfigError, match="does not repeat its episodes"):
        bench.follow(state + 1, action)
    state = side_plan(bench).state
    bench.change(0, "horizon", "", 3)  # beside it, as the agent goes on there
    bench.follow(state, action, is_shown=False)
    assert bench.node.label == "horizon 3"
    tip = bench.nodes[bench.tip]
    assert (tip.parent, tip.moment.step) == (1, 2)
    assert tip.side_plans[0].plan.actions.shape[1] == 8


def test_a_kept_moment_stays_beside_the_current_one(bench):
    bench.step()
    bench.pin(1)
    bench.step()
    drawn = describe(bench)
    assert (drawn["pinned"]["id"], drawn["node"]["id"]) == (1, 2)
    bench.pin(None)
    assert describe(bench)["pinned"] is None


def test_moments_are_bounded(bench, monkeypatch):
    monkeypatch.setattr(core, "MAX_NODES", 2)
    bench.step()
    for more in (bench.step, bench.branch, lambda: bench.begin(1)):
        with pytest.raises(ConfigError, match="keeps 2 moments"):
            more()
    assert len(bench.nodes) == 2


def test_a_branch_is_exported_from_its_beginning(bench):
    bench.step()
    bench.place("goal", (230.0, 60.0), "drag")
    bench.step()
    frames = describe_branch(bench, bench.node)
    assert [frame["step"] for frame in frames] == [0, 1, 2]
    assert [frame["label"] for frame in frames] == ["seed 0", "goal moved", ""]
