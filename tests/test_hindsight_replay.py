"""Hindsight relabelling: what was collected for one goal is learnt from as if for another."""

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
from ami_agent.adapters.env import EnvConfig
from ami_agent.adapters.fault_tolerance import EnvError
from ami_agent.bench.baselines import SB3Comparison, default_algorithm
from ami_agent.config import buffer_steps, build, override
from ami_agent.evaluation.evaluate import evaluate_modes
from ami_agent.train import check
from ami_agent.training import CollectBehaviour
from ami_agent.training.hindsight import HindsightBuffer, with_hindsight
from ami_agent.training.optim import OptimConfig
from modules.types import ConfigError

NEAR = 0.05


class Aim(gymnasium.Env):
    """A position on a line, and a target on it; being there is rewarded, and nothing else
    is. `fault`: how it may differ from what Gymnasium's goal-conditioned interface promises."""

    action_space = Box(-1, 1, (1,), np.float32)

    def __init__(self, fault="") -> None:
        self.fault = fault
        if fault == "mute":
            self.compute_reward = None
        one = Box(-2, 2, (1,), np.float32)
        names = (
            "observation",
            "achieved_goal",
            "target" if fault == "goalless" else "desired_goal",
        )
        self.observation_space = Dict(dict.fromkeys(names, one))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.goal = self.np_random.uniform(-1, 1, 2)
        return self.observe(), {}

    def step(self, action):
        self.place = float(np.clip(self.place + 0.1 * action[0], -1, 1))
        there = abs(self.place - self.goal) < NEAR
        reward = float(there) if self.fault != "moody" else 7.0
        return self.observe(), reward, False, False, {"is_success": there}

    def observe(self):
        here, there = (np.array([x], np.float32) for x in (self.place, self.goal))
        target = "target" if self.fault == "goalless" else "desired_goal"
        return {"observation": here, "achieved_goal": here, target: there}

    def compute_reward(self, achieved, desired, info):
        there = np.abs(achieved - desired)[..., 0] < NEAR
        return there.astype(np.float32) if self.fault != "single" else float(there.all())


@pytest.fixture(autouse=True, scope="module")
def _known():
    gymnasium.register("ami-test/Aim-v0", entry_point=Aim, max_episode_steps=30)
    yield
    del gymnasium.registry["ami-test/Aim-v0"]


def collect_data(**options):
    """An agent with random steps of three environments, three episodes each, and the environment's
    settings."""
    config = ami.recipes.gym(EnvConfig(id="ami-test/Aim-v0", options=options))
    config = override(config, {"stages.collect": CollectBehaviour(num_envs=3, steps=92)})
    with closing(config.env.build(1)) as env:
        agent = build(config, env.spec, num_envs=3, buffer_size=buffer_steps(config))
    episode = config.stages["collect"].start(agent, config.env, 1)
    for _ in range(92):
        episode.update()
    episode.finish()
    return agent, config


def make_rng():
    return torch.Generator().manual_seed(5)


def drawn(fraction, count=600, length=3):
    agent, config = collect_data()
    relabelled = with_hindsight(agent.replay_buffer, fraction, agent.spec, config.env)
    return relabelled.sample(count, length, make_rng()), agent.replay_buffer.sample(
        count, length, make_rng()
    )


def test_without_relabelling_the_replay_buffer_is_unchanged():
    agent, config = collect_data()
    assert with_hindsight(agent.replay_buffer, 0.0, agent.spec, config.env) is agent.replay_buffer


def test_a_relabelled_goal_was_achieved_later_in_the_same_episode_and_is_rewarded_as_the_env_does():
    relabelled, plain = drawn(1.0)
    goal, here = relabelled.obs["desired_goal"], relabelled.obs["achieved_goal"]
    assert (goal == goal[:, :1]).all()
    for name in ("observation", "achieved_goal"):
        torch.testing.assert_close(relabelled.obs[name], plain.obs[name])
    there = (here[:, 1:] - goal[:, :-1]).abs()[..., 0] < NEAR
    assert relabelled.interoception[..., 0].equal(there.float())
    assert relabelled.interoception[..., 1:].equal(plain.interoception[..., 1:])
    agent, _ = collect_data()
    for index in range(0, 600, 60):  # bounded by what can be reached from the end of a window
        whole = agent.replay_buffer.get_episode(relabelled.episode_id[index]).obs["achieved_goal"][
            0, :, 0
        ]
        end = int((whole == here[index, -1, 0]).nonzero()[-1])
        assert (whole[end:] == goal[index, 0, 0]).any()
    later = (goal[:, 0, 0] - here[:, -1, 0]).abs()
    assert later.max() > 0.5  # up to the episode's end
    assert (later == 0).float().mean() < 0.4


def test_a_fraction_is_relabelled_and_the_rest_is_unchanged():
    relabelled, plain = drawn(0.75)
    same = (relabelled.obs["desired_goal"] == plain.obs["desired_goal"]).flatten(1).all(1)
    assert 0.2 < same.float().mean() < 0.3
    assert relabelled.interoception[same].equal(plain.interoception[same])


def test_the_replay_buffer_draws_steps_between_the_end_of_a_window_and_that_of_its_episode():
    agent, _ = collect_data()
    window, later = agent.replay_buffer.sample_with_future(500, 4, make_rng())
    assert window.obs["observation"].equal(
        agent.replay_buffer.sample(500, 4, make_rng()).obs["observation"]
    )
    spread = (later["observation"] - window.obs["observation"][:, -1]).abs()
    assert spread.max() > 0.5
    assert later["desired_goal"].equal(window.obs["desired_goal"][:, -1])  # the same episode's


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("goalless", "hindsight needs observations that are a Dict with 'desired_goal'"),
        ("mute", r"ami-test/Aim-v0 has no compute_reward\(achieved, desired, info\)"),
        ("single", r"rewards of shape \(\) for goals of shape \(1024, 1\)"),
        (
            "moody",
            "in 100 % of the steps the environment's reward is not that of its compute_reward",
        ),
    ],
)
def test_envs_with_invalid_goal_rewards_are_named_with_a_remedy(fault, message):
    agent, config = collect_data(fault=fault)
    with pytest.raises(ConfigError, match=message):
        with_hindsight(agent.replay_buffer, 0.8, agent.spec, config.env)


def test_the_recipe_relabels_goals_where_an_env_has_goals_and_only_there():
    aim = ami.recipes.gym(EnvConfig(id="ami-test/Aim-v0"))
    assert aim.stages["actor_critic"].hindsight_fraction == 0.8
    assert (
        ami.recipes.gym(EnvConfig(id="ami-test/Aim-v0", options={"fault": "goalless"}))
        .stages["actor_critic"]
        .hindsight_fraction
        == 0
    )
    assert (
        ami.recipes.gym(EnvConfig(id="CartPole-v1")).stages["actor_critic"].hindsight_fraction == 0
    )


def test_repeated_actions_and_stacked_frames_can_not_be_relabelled():
    agent, config = collect_data()
    with pytest.raises(ConfigError, match="must be 1"):
        with_hindsight(agent.replay_buffer, 0.8, agent.spec, replace(config.env, action_repeat=2))


@pytest.mark.long
def test_an_agent_with_relabelled_goals_learns_to_arrive(tmp_path):
    config = ami.recipes.gym(EnvConfig(id="ami-test/Aim-v0"))
    optim = OptimConfig(steps=0, batch_size=64, final_lr_fraction=0.2)
    interact = replace(
        config.stages["actor_critic"],
        steps=400,
        optim=replace(config.stages["actor_critic"].optim, batch_size=64),
        train_jepa=replace(config.stages["actor_critic"].train_jepa, optim=optim),
    )
    config = override(
        config,
        {
            "stages.collect": CollectBehaviour(num_envs=1, steps=200),
            "stages.actor_critic": interact,
        },
    )
    agent = ami.train(config, out=tmp_path / "run", seed=0)
    found = evaluate_modes(agent, config.eval_env, modes=("react",), episodes=50)["react"]
    assert found["final_success"]["mean"] > 0.9
    assert found["baselines"]["random"]["final_success"]["mean"] < 0.2


def test_her_of_stable_baselines3_is_evaluated_in_the_same_episodes(tmp_path):
    pytest.importorskip("stable_baselines3", reason="the extra `baselines` is not installed")
    bench = SB3Comparison(
        env=EnvConfig(id="ami-test/Aim-v0"), steps=1100, eval_every=1100, seeds=1, episodes=5,
        algorithms=("random", "her"), out=str(tmp_path),
    )  # fmt: skip
    found = bench.measure(Console(quiet=True))["ami-test/Aim-v0"]["curves"]
    ((steps, metric, _),) = found["her"][0]
    assert steps == 1100
    assert 0 <= metric <= 30
    plain = EnvConfig(id="Pendulum-v1")
    with pytest.raises(ConfigError, match="HER does not support Pendulum-v1"):
        replace(bench, env=plain, algorithms=("her",)).measure(Console(quiet=True))


def test_the_default_baseline_suits_the_env():
    envs = {"ami-test/Aim-v0": "her", "Pendulum-v1": "sac", "CartPole-v1": "ppo"}
    for name, rival in envs.items():
        assert default_algorithm(ami.recipes.gym(EnvConfig(id=name))) == rival


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda *goals: 1 / 0, "failed with 2 goals at once: ZeroDivisionError"),
        (lambda one, other, info: np.full(len(one), np.nan), "returns NaN"),
    ],
)
def test_invalid_results_of_compute_reward_are_reported_in_one_line(answer, message):
    with pytest.raises(EnvError, match=message):
        HindsightBuffer(None, 0.5, answer).rewards(torch.zeros(1, 2, 1), torch.ones(1, 2, 1))


def test_the_conditions_of_relabelling_are_checked_before_collection(tmp_path):
    config = ami.recipes.gym(EnvConfig(id="ami-test/Aim-v0", options={"fault": "mute"}))
    assert (
        config.stages["actor_critic"].hindsight_fraction == 0
    )  # by itself, where an environment does not say
    target = override(
        config,
        {"stages.actor_critic.hindsight_fraction": 0.5},
    )
    with pytest.raises(ConfigError, match="has no compute_reward"):
        check(target, tmp_path, 0, False)
    for fault, message in (
        ("single", r"rewards of shape \(\) for .*axis -1"),
        ("moody", "in 100 % of the"),
    ):
        env = EnvConfig(id="ami-test/Aim-v0", options={"fault": fault})
        wrong = ami.recipes.gym(env)
        with pytest.raises(
            ConfigError, match=f"{message}.*--actor-critic.hindsight-fraction 0 trains without"
        ):
            check(wrong, tmp_path, 0, False)
        check(
            override(
                wrong,
                {"stages.actor_critic.hindsight_fraction": 0.0},
            ),
            tmp_path,
            0,
            False,
        )
    nonsense = override(config, {"stages.actor_critic.task": "fly"})
    with pytest.raises(ConfigError, match=r"actor_critic\.task names 'fly'; there are reward"):
        check(nonsense, tmp_path, 0, False)
