"""What was lived for one goal, looked at as if it had been lived for another."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict
from rich.console import Console

import ami_agent as ami
from ami_agent.bench.baselines import Baselines, suiting
from ami_agent.build import build, capacity
from ami_agent.evaluate import judge
from ami_agent.guard import Failed
from ami_agent.learning import Learning
from ami_agent.lessons import Live
from ami_agent.lessons.hindsight import Hindsight, hindsight
from ami_agent.life import WorldConfig
from ami_agent.train import check
from modules.types import UnusableInput

NEAR = 0.05


class Aim(gymnasium.Env):
    """A place on a line, and another where it is to be; rewarded is being there, and nothing else
    is. `fault`: how it may differ from what Gymnasium's goal-conditioned worlds promise."""

    action_space = Box(-1, 1, (1,), np.float32)

    def __init__(self, fault="") -> None:
        self.fault = fault
        if fault == "mute":
            self.compute_reward = None
        one = Box(-2, 2, (1,), np.float32)
        names = (
            "observation",
            "achieved_goal",
            "wanted" if fault == "goalless" else "desired_goal",
        )
        self.observation_space = Dict(dict.fromkeys(names, one))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.goal = self.np_random.uniform(-1, 1, 2)
        return self.seen(), {}

    def step(self, action):
        self.place = float(np.clip(self.place + 0.1 * action[0], -1, 1))
        there = abs(self.place - self.goal) < NEAR
        reward = float(there) if self.fault != "moody" else 7.0
        return self.seen(), reward, False, False, {"is_success": there}

    def seen(self):
        here, there = (np.array([x], np.float32) for x in (self.place, self.goal))
        wanted = "wanted" if self.fault == "goalless" else "desired_goal"
        return {"observation": here, "achieved_goal": here, wanted: there}

    def compute_reward(self, achieved, desired, info):
        there = np.abs(achieved - desired)[..., 0] < NEAR
        return there.astype(np.float32) if self.fault != "single" else float(there.all())


@pytest.fixture(autouse=True, scope="module")
def _known():
    gymnasium.register("ami-test/Aim-v0", entry_point=Aim, max_episode_steps=30)
    yield
    del gymnasium.registry["ami-test/Aim-v0"]


def lived(**options):
    """An agent that remembers three random lives of three episodes in this world, and the world's
    settings."""
    config = ami.recipes.gym(WorldConfig(id="ami-test/Aim-v0", options=options))
    config = replace(config, life=Live(worlds=3, steps=92))
    with closing(config.world.build(1)) as world:
        agent = build(config, world.spec, worlds=3, capacity=capacity(config))
    life = config.life.begin(agent, config.world, 1)
    for _ in range(92):
        life.update()
    life.finish()
    return agent, config


def dice():
    return torch.Generator().manual_seed(5)


def drawn(share, count=600, length=3):
    agent, config = lived()
    seen = hindsight(agent.memory, share, agent.spec, config.world)
    return seen.sample(count, length, dice()), agent.memory.sample(count, length, dice())


def test_without_hindsight_memory_is_as_it_is():
    agent, config = lived()
    assert hindsight(agent.memory, 0.0, agent.spec, config.world) is agent.memory


def test_what_is_wanted_was_achieved_later_in_the_same_episode_and_is_rewarded_as_the_world_does():
    seen, plain = drawn(1.0)
    goal, here = seen.obs["desired_goal"], seen.obs["achieved_goal"]
    assert (goal == goal[:, :1]).all()
    for name in ("observation", "achieved_goal"):
        torch.testing.assert_close(seen.obs[name], plain.obs[name])
    there = (here[:, 1:] - goal[:, :-1]).abs()[..., 0] < NEAR
    assert seen.interoception[..., 0].equal(there.float())
    assert seen.interoception[..., 1:].equal(plain.interoception[..., 1:])
    agent, _ = lived()
    for index in range(0, 600, 60):  # bounded by what can be walked from the end of a stretch
        whole = agent.memory.recall(seen.episode[index]).obs["achieved_goal"][0, :, 0]
        end = int((whole == here[index, -1, 0]).nonzero()[-1])
        assert (whole[end:] == goal[index, 0, 0]).any()
    later = (goal[:, 0, 0] - here[:, -1, 0]).abs()
    assert later.max() > 0.5  # up to the episode's end
    assert (later == 0).float().mean() < 0.4


def test_a_share_is_looked_at_so_and_the_rest_as_it_was():
    seen, plain = drawn(0.75)
    same = (seen.obs["desired_goal"] == plain.obs["desired_goal"]).flatten(1).all(1)
    assert 0.2 < same.float().mean() < 0.3
    assert seen.interoception[same].equal(plain.interoception[same])


def test_memory_draws_moments_from_a_stretch_s_end_to_its_episode_s():
    agent, _ = lived()
    stretch, later = agent.memory.sample_ahead(500, 4, dice())
    assert stretch.obs["observation"].equal(agent.memory.sample(500, 4, dice()).obs["observation"])
    spread = (later["observation"] - stretch.obs["observation"][:, -1]).abs()
    assert spread.max() > 0.5
    assert later["desired_goal"].equal(stretch.obs["desired_goal"][:, -1])  # the same episode's


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("goalless", "hindsight needs a world whose observations are a Dict with 'desired_goal'"),
        ("mute", r"ami-test/Aim-v0 has no compute_reward\(achieved, desired, info\)"),
        ("single", r"answers \(1024, 1\) goals with \(\) rewards"),
        ("moody", "in 100 % of the steps the world's reward is not what its compute_reward says"),
    ],
)
def test_worlds_that_do_not_keep_the_promise_are_named_with_the_way_out(fault, said):
    agent, config = lived(fault=fault)
    with pytest.raises(UnusableInput, match=said):
        hindsight(agent.memory, 0.8, agent.spec, config.world)


def test_the_recipe_has_hindsight_where_a_world_has_goals_and_only_there():
    aim = ami.recipes.gym(WorldConfig(id="ami-test/Aim-v0"))
    assert aim.interact.hindsight == 0.8
    assert (
        ami.recipes.gym(
            WorldConfig(id="ami-test/Aim-v0", options={"fault": "goalless"})
        ).interact.hindsight
        == 0
    )
    assert ami.recipes.gym(WorldConfig(id="CartPole-v1")).interact.hindsight == 0


def test_what_is_held_or_stacked_has_no_reward_of_one_step():
    agent, config = lived()
    with pytest.raises(UnusableInput, match="no repeat or stack"):
        hindsight(agent.memory, 0.8, agent.spec, replace(config.world, repeat=2))


@pytest.mark.long
def test_who_looks_back_so_learns_to_arrive(tmp_path):
    config = ami.recipes.gym(WorldConfig(id="ami-test/Aim-v0"))
    learning = Learning(steps=0, batch=64, last=0.2)
    interact = replace(
        config.interact, steps=400, learning=replace(config.interact.learning, batch=64),
        objective=replace(config.interact.objective, learning=learning),
    )  # fmt: skip
    config = replace(config, life=Live(worlds=1, steps=200), interact=interact)
    agent = ami.train(config, out=tmp_path / "run", seed=0)
    found = judge(agent, config.evaluation, modes=("react",), episodes=50)["react"]
    assert found["final_success"]["mean"] > 0.9
    assert found["baselines"]["random"]["final_success"]["mean"] < 0.2


def test_who_else_learns_in_hindsight_is_judged_in_the_same_episodes(tmp_path):
    pytest.importorskip("stable_baselines3", reason="the extra `baselines` is not installed")
    bench = Baselines(
        env=WorldConfig(id="ami-test/Aim-v0"), steps=1100, every=1100, seeds=1, episodes=5,
        who=("random", "her"), out=str(tmp_path),
    )  # fmt: skip
    found = bench.run(Console(quiet=True))["ami-test/Aim-v0"]["curves"]
    ((steps, mark, _),) = found["her"][0]
    assert steps == 1100
    assert 0 <= mark <= 30
    plain = WorldConfig(id="Pendulum-v1")
    with pytest.raises(UnusableInput, match="HER can't live in Pendulum-v1"):
        replace(bench, env=plain, who=("her",)).run(Console(quiet=True))


def test_the_rival_suits_the_world():
    worlds = {"ami-test/Aim-v0": "her", "Pendulum-v1": "sac", "CartPole-v1": "ppo"}
    for name, rival in worlds.items():
        assert suiting(ami.recipes.gym(WorldConfig(id=name))) == rival


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda *goals: 1 / 0, "failed with 2 goals at once: ZeroDivisionError"),
        (lambda one, other, info: np.full(len(one), np.nan), "answers with NaN"),
    ],
)
def test_a_world_that_can_not_say_what_goals_are_worth_is_told_in_a_line(answer, said):
    with pytest.raises(Failed, match=said):
        Hindsight(None, 0.5, answer).rewards(torch.zeros(1, 2, 1), torch.ones(1, 2, 1))


def test_what_hindsight_needs_is_asked_before_anything_is_lived(tmp_path):
    config = ami.recipes.gym(WorldConfig(id="ami-test/Aim-v0", options={"fault": "mute"}))
    assert config.interact.hindsight == 0  # by itself, where a world does not say
    wanted = replace(config, interact=replace(config.interact, hindsight=0.5))
    with pytest.raises(UnusableInput, match="has no compute_reward"):
        check(wanted, tmp_path, 0, False)
    for fault, said in (("single", r"with \(\) rewards; .*axis -1"), ("moody", "in 100 % of the")):
        world = WorldConfig(id="ami-test/Aim-v0", options={"fault": fault})
        wrong = ami.recipes.gym(world)
        with pytest.raises(UnusableInput, match=f"{said}.*--interact.hindsight 0 does without"):
            check(wrong, tmp_path, 0, False)
        check(replace(wrong, interact=replace(wrong.interact, hindsight=0.0)), tmp_path, 0, False)
    nonsense = replace(config, interact=replace(config.interact, task="fly"))
    with pytest.raises(UnusableInput, match=r"interact\.task names 'fly'; there are reward"):
        check(nonsense, tmp_path, 0, False)
