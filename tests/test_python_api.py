"""An agent in a loop of the user's own: a Controller takes what Gymnasium delivers and gives what
`step` takes; invalid input is refused in one line, and leaves the controller as it was."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from itertools import product

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import ami_agent as ami
from ami_agent import recipes
from ami_agent.adapters import env_spec
from ami_agent.adapters.env import EnvConfig, check_same_spaces
from ami_agent.adapters.spaces import interface_to
from ami_agent.agent import Agent
from ami_agent.config import Config, build, override
from ami_agent.evaluation.policies import EpisodeStart, agent_policy_factory
from ami_agent.storage import run_dir
from modules.actor.planning import (
    CEMConfig,
    CollocationConfig,
    GradientPlannerConfig,
    MPPIConfig,
)
from modules.actor.policy import StuckPerturbationConfig
from modules.actor.subgoals import ImaginedLandmarkGraphConfig, LandmarkGraph, LandmarkGraphConfig
from modules.memory.short_term import (
    AttentionMemoryConfig,
    GRUMemoryConfig,
)
from modules.types import ConfigError, Plan
from modules.world_model.hjepa import HierarchicalJEPA, HierarchicalJEPAConfig
from tests.conftest import small

Box, Discrete, MultiDiscrete = spaces.Box, spaces.Discrete, spaces.MultiDiscrete
MultiBinary, Dict, Tuple = spaces.MultiBinary, spaces.Dict, spaces.Tuple
f16, f32, f64, u8 = np.float16, np.float32, np.float64, np.uint8

VECTOR, PUSH = Box(-1, 1, (2,), f32), Box(-1, 1, (1,), f32)
CASES = {
    "discrete": (Discrete(5, start=-2), Discrete(3, start=7)),
    "multi-discrete": (
        MultiDiscrete(np.array([[3, 4], [2, 5]])), MultiDiscrete([2, 3], start=[1, 10]),
    ),
    "multi-binary": (MultiBinary((2, 3)), MultiBinary((2, 2))),
    "scalars": (Box(0, 1, (), f32), Box(0, 1, (), f32)),
    "float64": (Box(-1, 1, (3,), f64), Box(-1, 1, (2,), f64)),
    "float16": (Box(-1, 1, (3,), f16), Box(-1, 1, (2,), f16)),
    "integers": (Box(-100, 100, (3,), np.int64), Box(-3, 8, (2,), np.int8)),
    "booleans": (Box(0, 1, (4,), np.bool_), Box(np.array([-3, 0], f32), np.array([3, 9], f32))),
    "channels-last": (Box(0, 255, (16, 12, 3), u8), PUSH),
    "grey": (Box(0, 255, (16, 12, 1), u8), PUSH),
    "nested": (
        Dict(
            a=Tuple([Box(-1, 1, (2,), f32), Discrete(3)]),
            b=Dict(c=Tuple([MultiBinary(2), Box(0, 255, (8, 8, 3), u8)])),
        ),
        PUSH,
    ),
}  # fmt: skip


class Sampled(gymnasium.Env):
    """Shows samples of its observation space, and checks its actions."""

    def __init__(self, case: str) -> None:
        self.observation_space, self.action_space = CASES[case]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(np.asarray(action))
        return self.observation_space.sample(), 1.0, False, False, {}


gymnasium.register("ami-test/Sampled-v0", entry_point=Sampled)
REWARD = ami.Task(drives={"reward": 1.0})


def gym_agent(case: str) -> Agent:
    config = ami.recipes.gym(EnvConfig(id="ami-test/Sampled-v0", options={"case": case}))
    with closing(config.env.build(1)) as env_:
        return build(config, env_.spec).eval()


@pytest.fixture(scope="module")
def vector_agent() -> Agent:
    return gym_agent("float64")


@pytest.mark.parametrize("case", CASES)
def test_a_controller_accepts_what_environments_deliver_and_returns_what_they_accept(case):
    agent = gym_agent(case)
    envs = gymnasium.make_vec(
        "ami-test/Sampled-v0", num_envs=2, vectorization_mode="sync", case=case
    )
    env = gymnasium.make("ami-test/Sampled-v0", disable_env_checker=True, case=case)
    for mode in ("react", "plan"):
        for env_or_envs, count in ((envs, 2), (env, None)):
            obs, _ = env_or_envs.reset(seed=0)
            controller = agent.controller(num_envs=count, task=replace(REWARD, mode=mode))
            for _ in range(2):
                plan = controller.act(obs)
                assert env_or_envs.action_space.contains(plan.env_action)
                obs, *_ = env_or_envs.step(plan.env_action)


def test_a_plan_is_printed_as_its_shapes(vector_agent):
    plan = vector_agent.controller(num_envs=2, task=REWARD).act(GOOD)
    shown = repr(plan)
    assert shown.startswith(f"Plan(actions {list(plan.actions.shape)}, energy [2], terms {{")
    assert f"states {list(plan.states.shape)}" in shown
    assert shown.endswith(f"env_action {list(np.shape(plan.env_action))})")
    assert len(shown) < 500
    assert str(plan) == shown


def test_a_discrete_action_of_one_environment_is_an_integer():
    env = gymnasium.make("CartPole-v1")
    config = ami.recipes.gym(EnvConfig(id="CartPole-v1"))
    with closing(config.env.build(1)) as env_:
        controller = build(config, env_.spec).controller(task=REWARD)
    action = controller.act(env.reset(seed=0)[0]).env_action
    assert isinstance(action, np.integer)
    assert int(action) in (0, 1)


def test_arrays_and_tensors_of_any_float_dtype_and_byte_order_are_the_same_observation(
    vector_agent,
):
    obs = np.array([[0.5, -0.25, 0.125], [1, 0, -1]])
    plans = [
        vector_agent.controller(num_envs=2, task=REWARD).act(form)
        for form in (
            obs, obs.astype(f32), obs.astype(">f8"), obs.astype(">f4"), obs.tolist(),
            torch.tensor(obs), torch.tensor(obs, dtype=torch.bfloat16), np.asfortranarray(obs),
            torch.tensor(obs, requires_grad=True), obs[::-1][::-1], torch.tensor(obs.T.copy()).T,
        )
    ]  # fmt: skip
    assert all(torch.equal(plan.actions, plans[0].actions) for plan in plans)


GOOD = np.array([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]])


def corrupted(value: float) -> np.ndarray:
    bad = GOOD.copy()
    bad[1, 2] = value
    return bad


BAD = {
    "nan": (corrupted(np.nan), "observation of environment 1 holds NaN"),
    "infinity": (corrupted(-np.inf), "observation of environment 1 holds NaN or infinity"),
    "beyond single precision": (corrupted(1e300), "observation of environment 1 .*holds"),
    "list with nan": ([[0.0, 0.0, 0.0], [0.0, float("nan"), 0.0]], "environment 1 holds NaN"),
    "strings": (GOOD.astype(str), "observation is an array of <U.*numbers of float64"),
    "objects": (GOOD.astype(object), "observation is an array of object"),
    "complex": (GOOD.astype(complex), "observation is an array of complex128"),
    "none": (None, "observation is an array of object"),
    "ragged": ([[0.0], [0.0, 1.0]], "observation is a list, not an array"),
    "sparse": (torch.tensor(GOOD).to_sparse(), "observation is a sparse"),
    "meta": (torch.zeros(2, 3, device="meta"), "observation is an array of torch.float32"),
    "masked": (np.ma.masked_array(GOOD, GOOD > 0.2), "observation is a masked array"),
    "too few": (GOOD[:1], r"of shape \(1, 3\); it must be \(2, 3\)"),
    "too many": (np.zeros((3, 3)), r"of shape \(3, 3\); it must be \(2, 3\)"),
    "no batch": (GOOD[0], r"of shape \(3,\); it must be \(2, 3\)"),
    "too wide": (np.zeros((2, 4)), r"of shape \(2, 4\); it must be \(2, 3\)"),
    "dict": ({"obs": GOOD}, "observation is an array of object"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("mode", ["react", "plan"])
def test_invalid_observations_are_refused_in_one_line_and_change_nothing(vector_agent, case, mode):
    bad, message = BAD[case]
    one, other = (
        vector_agent.controller(num_envs=2, task=replace(REWARD, mode=mode), seed=3)
        for _ in range(2)
    )
    for step in range(3):
        with pytest.raises(ConfigError, match=message) as raised:
            one.act(bad)
        assert "\n" not in str(raised.value)
        assert same(one.act(GOOD + step / 10), other.act(GOOD + step / 10))


@pytest.fixture(scope="module")
def unbounded_agent() -> Agent:
    """It has short-term memory, and its observations have no bounds."""
    config = ami.recipes.gym(EnvConfig(id="Pendulum-v1"))
    with closing(config.env.build(1)) as env_:
        agent = build(
            override(config, {"memory.short_term": GRUMemoryConfig(hidden=4)}), env_.spec
        ).eval()
    interface = interface_to(Box(-np.inf, np.inf, (3,), f32), agent.spec.interface.action_space)
    agent.spec = agent.spec._replace(interface=interface)
    return agent


@pytest.mark.parametrize("mode", ["react", "plan"])
def test_numbers_that_overflow_in_the_agent_are_refused_and_change_nothing(unbounded_agent, mode):
    task = replace(REWARD, mode=mode)
    one, other = (unbounded_agent.controller(2, task) for _ in range(2))
    for step in range(3):
        with pytest.raises(ConfigError, match="environment 1 holds a number beyond"):
            one.act(corrupted(3e38).astype(f32))
        assert same(one.act(GOOD + step / 10), other.act(GOOD + step / 10))


def test_a_plan_that_is_not_finite_is_refused_and_changes_nothing(unbounded_agent):
    plans = []
    for spoils in (False, True):
        controller = unbounded_agent.controller(task=REWARD, tensors=True)
        plans.append([])
        for step in range(3):
            if spoils:
                with pytest.raises(ConfigError, match=r"environment 1 .*not finite"):
                    controller.act(torch.tensor(corrupted(3e38)).float())
            plans[-1].append(controller.act(torch.tensor(GOOD + step / 10).float()))
    assert all(same(*pair) for pair in zip(*plans, strict=True))


def test_weights_that_are_not_finite_are_not_blamed_on_the_observation():
    agent = gym_agent("float64")
    with torch.no_grad():
        next(agent.policy.parameters()).fill_(torch.nan)
    with pytest.raises(ConfigError, match="the agent's weights are not finite"):
        agent.controller(2, replace(REWARD, mode="react")).act(GOOD)


def same(one: Plan, other: Plan) -> bool:
    return (
        torch.equal(one.actions, other.actions)
        and torch.equal(one.candidate_states, other.candidate_states)
        and np.array_equal(one.env_action, other.env_action)
    )


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        ({"a": (np.zeros((2, 2)), np.zeros(2, int))}, "observation lacks 'b'; it must be a dict"),
        ([1, 2], "observation is a list; it must be a dict of 'a', 'b'"),
        ({"a": np.zeros(2), "b": 0}, "observation 'a' is an array.*it must be a tuple of 2 parts"),
        ({"a": 0, "b": 0, "c": 0}, "observation also has 'c'"),
    ],
)
def test_parts_that_are_missing_or_too_many_are_named(obs, message):
    controller = gym_agent("nested").controller(num_envs=2, task=REWARD)
    with pytest.raises(ConfigError, match=message):
        controller.act(obs)


def test_integers_out_of_range_and_floats_for_them_are_refused():
    controller = gym_agent("channels-last").controller(task=REWARD)
    with pytest.raises(ConfigError, match="holds a number that is none of Box"):
        controller.act(np.full((16, 12, 3), 300))
    with pytest.raises(ConfigError, match=r"array of float64.*must hold whole numbers"):
        controller.act(np.zeros((16, 12, 3)))
    assert controller.act(np.full((16, 12, 3), 200)).env_action.shape == (1,)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"drives": {"hunger": 1.0}}, "drive 'hunger': there are reward"),
        ({"drives": {"reward": -1.0}}, "'reward' is -1.0; it must be 0 or more"),
        ({"drives": {"reward": float("nan")}}, "'reward' is nan; it must be 0 or more"),
        ({"drives": {"reward": "much"}}, "drives 'reward' is 'much'; it must be a number"),
        ({"drives": ["reward"]}, r"drives are \['reward'\]; they must be a dict by name"),
        ({"weights": {1: 1.0}}, "weights are .* they must be a dict by name"),
        (
            {"weights": {"goal_distance": 1.0}},
            "the cost 'goal_distance' needs a goal, and the task has none",
        ),
        ({"drives": {}}, "no goal|no cost has a weight"),
        ({"limits": {"reward": float("inf")}}, "limit of 'reward' is inf"),
        (
            {"modality_weights": {"obs": None}},
            "modality_weights 'obs' is None; it must be a number",
        ),
        ({"mode": "sleep"}, "no mode 'sleep'; there are"),
        ({"mode": 3}, "mode is 3; it must be a string"),
        (
            {"horizon": 10**9},
            "horizon is 1000000000; it must be a whole number from 0 .* to 10000$",
        ),
        ({"horizon": 2.5}, "horizon is 2.5; it must be a whole number"),
        ({"horizon": -1}, "horizon is -1"),
        (
            {"planner_iterations": 10**9},
            "planner_iterations is 1000000000; it must be a whole number .* to 100000$",
        ),
        ({"planner_iterations": "many"}, "planner_iterations is 'many'; it must be a whole number"),
        ({"cvar_alpha": 1.5}, "cvar_alpha is 1.5; it must be a number from 0 to 1"),
        ({"cvar_alpha": float("nan")}, "cvar_alpha is nan; it must be a number from 0 to 1"),
        ({"cvar_alpha": "worst"}, "cvar_alpha is 'worst'; it must be a number from 0 to 1"),
        ({"goal": GOOD[:, :2]}, r"goal is of shape \(2, 2\); it must be \(1, 3\) or \(2, 3\)"),
        ({"goal": corrupted(np.nan)}, "goal of environment 1 holds NaN"),
        ({"goal": "home"}, "goal is an array of <U4"),
    ],
)
def test_an_odd_task_is_refused_in_one_line_and_the_old_one_stays(vector_agent, wish, message):
    controller = vector_agent.controller(num_envs=2, task=REWARD)
    with pytest.raises(ConfigError, match=message) as raised:
        controller.set_task(ami.Task(**{"drives": {"reward": 1.0}, **wish}))
    assert "\n" not in str(raised.value)
    assert same(controller.act(GOOD), vector_agent.controller(2, REWARD).act(GOOD))


def test_invalid_tasks_masks_and_numbers_of_environments_are_refused(vector_agent):
    with pytest.raises(ConfigError, match=r"the task is a dict; it must be an ami\.Task"):
        vector_agent.controller(task={"goal": None})
    for odd in (0, -1, 2.5, "2", True):
        with pytest.raises(ConfigError, match="num_envs is"):
            vector_agent.controller(num_envs=odd)
    with pytest.raises(ConfigError, match="seed is -1"):
        vector_agent.controller(seed=-1)
    controller = vector_agent.controller(num_envs=2, task=REWARD)
    for mask in ([True], [0, 1], "yes", [[True, False]]):
        with pytest.raises(ConfigError, match=r"done is .*it must be bool of shape \(2,\)"):
            controller.reset(mask)
    with pytest.raises(ConfigError, match="no task yet"):
        vector_agent.controller(num_envs=2).act(GOOD)


HOPS = {"max_edges": 3}
KINDS = {
    "gradient": {},
    "cem": {"actor.planner": CEMConfig(horizon=3, num_samples=8, num_elites=2)},
    "mppi": {"actor.planner": MPPIConfig(horizon=3, num_samples=8)},
    "collocation": {
        "actor.planner": CollocationConfig(
            horizon=3, iterations=2, warm_iterations=1, polish_steps=1
        )
    },
    "restless": {"actor.stuck_recovery": StuckPerturbationConfig(check_every=2, min_energy=0.0)},
    "committed": {"actor.receding_horizon": 2},
    "belief": {"memory.short_term": GRUMemoryConfig(hidden=4)},
    "associative": {"memory.short_term": AttentionMemoryConfig(num_slots=3, slot_dim=4)},
    "landmarks": {"actor.subgoals": LandmarkGraphConfig(num_landmarks=5, stuck_after=1, **HOPS)},
    "imagined": {
        "actor.subgoals": ImaginedLandmarkGraphConfig(
            num_landmarks=5, branches=3, branch_steps=2, stuck_after=1, **HOPS
        )
    },
    "levels": {"actor.subgoals": HierarchicalJEPAConfig(steps_per_level=(2,), memory_size=8)},
}


def goal_agent(config: Config, kind: str) -> Agent:
    """A small agent of that kind with weights that depend on each other."""
    changes = KINDS[kind]
    planner = changes.get(
        "actor.planner", GradientPlannerConfig(horizon=3, iterations=2, warm_iterations=1)
    )
    with closing(config.eval_env.build(1)) as env_:
        agent = build(override(config, {**changes, "actor.planner": planner}), env_.spec).eval()
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in agent.parameters():
            weights.add_(0.05 * torch.randn(weights.shape, generator=rng))
    states = torch.randn(8, agent.encode(agent.spec.zeros(1)).shape[1], generator=rng)
    if isinstance(agent.subgoals, LandmarkGraph):
        agent.subgoals.build(states[:5], states[None], states[:5, None])
    if isinstance(agent.subgoals, HierarchicalJEPA):
        agent.subgoals.memory_bank.copy_(states)
    return agent


@pytest.fixture(scope="module")
def config() -> Config:
    small_one = small(recipes.two_rooms())
    return replace(
        small_one, eval_env=replace(small_one.eval_env, options={"max_episode_steps": 40})
    )


def collect_data(agent: Agent, obs, goal, seed: int, mode: str, steps: int = 4):
    """A controller that yields plan after plan, with a partial reset and a new task between."""
    controller = agent.controller(num_envs=2, task=ami.Task(goal=goal, mode=mode), seed=seed)
    for step in range(steps):
        yield controller.act(obs.roll(step, -1))
        if step == 1:
            controller.reset(torch.tensor([True, False]))
        if step == 2:
            controller.set_task(ami.Task(goal=goal.flip(0), mode=mode))


@pytest.mark.parametrize(("kind", "mode"), [*product(KINDS, ["plan"]), ("gradient", "auto")])
def test_interleaved_controllers_plan_as_each_does_alone(config, kind, mode):
    agent = goal_agent(config, kind)
    agent.plan_energy_predictor.task_vectors.zero_()
    with closing(config.eval_env.build(2)) as env_:
        obs, info = env_.reset(0)
        goal = env_.goal(info)
    single = [list(collect_data(agent, obs, goal, seed, mode)) for seed in (1, 2)]
    together = zip(*(collect_data(agent, obs, goal, seed, mode) for seed in (1, 2)), strict=True)
    for step, plans in enumerate(together):
        for seed in (0, 1):
            assert same(plans[seed], single[seed][step])
    if (
        mode == "plan" and kind != "cem"
    ):  # the seeds count, so that mixed-up streams would be noticed
        assert not torch.equal(single[0][0].candidate_states, single[1][0].candidate_states)


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_acting_changes_is_in_the_state_of_the_episode(config, kind):
    """The same state gives the same plan, whatever was done in between: no module keeps
    anything beside it, and none alters a part of it."""
    agent = goal_agent(config, kind)
    controller = agent.controller(tensors=True)
    with closing(config.eval_env.build(2)) as env_:
        obs, info = env_.reset(0)
        controller.set_task(ami.Task(goal=env_.goal(info)))
    controller.act(obs)
    before = controller.episode
    first = [controller.act(obs.roll(step, -1)) for step in range(3)]
    controller.reset(torch.tensor([True, False]))
    controller.act(obs)
    controller.episode = before
    assert all(same(controller.act(obs.roll(step, -1)), first[step]) for step in range(3))


def test_an_evaluation_in_between_changes_nothing(config):
    agent = goal_agent(config, "belief")
    with closing(config.eval_env.build(2)) as env_:
        obs, info = env_.reset(0)
        goal = env_.goal(info)
        scene = EpisodeStart(env_, obs, info)
        plans = []
        for evaluated in (False, True):
            acts = [
                agent_policy_factory(agent, "plan", agent.task_spec(""))(scene, 3)
            ]  # as in training
            controller = agent.controller(2, ami.Task(goal=goal), seed=1)
            found = [acts[0](obs), controller.act(obs).action]
            if evaluated:
                ami.evaluate(agent, config.eval_env, episodes=2)
            plans.append([*found, acts[0](obs), controller.act(obs).action])
    assert all(torch.equal(*pair) for pair in zip(*plans, strict=True))


def test_where_no_episode_ends_plans_are_continued(config):
    agent = goal_agent(config, "gradient")
    with closing(config.eval_env.build(2)) as env_:
        obs, info = env_.reset(0)
        task = ami.Task(goal=env_.goal(info))
    one, other = (agent.controller(2, task) for _ in range(2))
    one.act(obs), other.act(obs)
    one.reset(np.zeros(2, bool))
    assert same(one.act(obs), other.act(obs))
    one.reset(np.array([False, True]))
    assert not same(one.act(obs), other.act(obs))


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"episodes": 0}, "episodes is 0; it must be from 1"),
        ({"episodes": -1}, "episodes is -1"),
        ({"episodes": 2.5}, "episodes is 2.5; it must be a whole number"),
        ({"episodes": "5"}, "episodes is '5'; it must be a whole number"),
        ({"episodes": True}, "episodes is True; it must be a whole number"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": "0"}, "seed is '0'"),
        ({"task": "fly"}, "no task 'fly'"),
        ({"task": 3}, "task is a int; it must be str"),
        ({"mode": "sleep"}, "no mode 'sleep'"),
    ],
)
def test_odd_arguments_of_evaluate_are_refused(vector_agent, wish, message):
    env_ = EnvConfig(
        id="ami-test/Sampled-v0",
        options={"case": "float64"},
        terminal_channel=True,
        max_episode_steps=3,
    )
    with pytest.raises(ConfigError, match=message):
        ami.evaluate(vector_agent, env_, **{"episodes": 1, "mode": "react", **wish})


def test_odd_arguments_of_load_train_and_evaluate_are_refused(tmp_path, vector_agent, config):
    for odd, message in (
        (tmp_path / "nowhere", "is not a run folder"), (3, "run is 3; it must be a path"),
        ("a\0b", "it must be a path"), (None, "run is None; it must be a path"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            ami.load(odd)
    with pytest.raises(ConfigError, match="device is 'abacus'"):
        ami.load(tmp_path, device="abacus")
    with pytest.raises(ConfigError, match=r"agent is a str; it must be ami\.Agent"):
        ami.evaluate("agent", "CartPole-v1")
    with pytest.raises(ConfigError, match="env is a int"):
        ami.evaluate(vector_agent, 5)
    for wish, message in (
        ({"config": "two-rooms"}, "config is a str; it must be ami.Config"),
        ({"out": 5}, "out is 5; it must be a path"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"eval_episodes": -1}, "eval_episodes is -1"),
        ({"save_every": "often"}, "save_every is 'often'"),
        ({"save_every": float("nan")}, "save_every is nan"),
        ({"device": "gpu9"}, "device is"),
    ):
        with pytest.raises(ConfigError, match=message):
            ami.train(**{"config": config, "out": tmp_path / "run", **wish})
    assert not (tmp_path / "run").exists()


SPACES = [
    *[space for pair in CASES.values() for space in pair],
    Box(np.array([-np.inf, 0.1]), np.array([3, np.inf]), dtype=f64),
    Box(-(2**62), 2**62, (2,), np.int64),
    MultiBinary(4),
    Dict({"z": VECTOR, "a.b": spaces.Text(5, min_length=2, charset="ab")}),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_spaces_are_saved_without_loss(space):
    text = json.dumps(env_spec.space_to_json(space), allow_nan=False)
    again = env_spec.space_from_json(json.loads(text))
    assert again == space
    assert type(again) is type(space)
    assert again.dtype == space.dtype
    if isinstance(space, Box):
        assert (again.low == space.low).all()
        assert (again.high == space.high).all()


@pytest.mark.parametrize(
    "damage",
    [
        {}, [], None, 3, {"observation": {"_type": "Box"}, "action": {}, "interoception": []},
        {"interoception": ["reward"], "observation": {"_type": "Sun"}, "action": {"_type": "Sun"}},
        {"interoception": "reward", "observation": {"_type": "MultiBinary", "n": 2}},
        {"interoception": ["reward"], "observation": {"_type": "MultiBinary", "n": [10**9, 10**9]}},
        {"interoception": ["reward"], "observation": {"_type": "Discrete", "n": -1, "start": 0,
                                                      "dtype": "int64"}},
        {"interoception": ["reward"], "observation": {"_type": "Box", "shape": [2], "low": [0, "x"],
                                                      "high": 1, "dtype": "float32"}},
    ],
)  # fmt: skip
def test_a_damaged_file_of_spaces_is_refused_in_one_line(damage):
    with pytest.raises(ConfigError, match=r"spaces\.json") as raised:
        env_spec.from_json(damage, EnvConfig(id="x").interface, "spaces.json")
    assert "\n" not in str(raised.value)


class Bounded(gymnasium.Env):
    """Its spaces are what its options say."""

    def __init__(self, strength=1.0, sight=1.0, dtype="float32"):
        self.observation_space = Box(-sight, sight, (2,), np.dtype(dtype).type)
        self.action_space = Box(-strength, strength, (1,), f32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, self.observation_space.dtype), {}

    def step(self, action):
        self.t += 1
        return np.zeros(2, self.observation_space.dtype), 0.0, False, self.t == 2, {}


gymnasium.register("ami-test/Bounded-v0", entry_point=Bounded)
BOUNDED = EnvConfig(id="ami-test/Bounded-v0", terminal_channel=True, max_episode_steps=5)
ELSEWHERE = {
    "strength": ({"strength": 100.0}, r"actions from \[-100.\] to \[100.\].*trained.*from \[-1.\]"),
    "sight": ({"sight": 5.0}, r"observations from \[-5.\] to \[5.\].*trained with .*from \[-1.\]"),
    "dtype": ({"dtype": "float64"}, r"float64.*, but the agent is made for .*float32"),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_an_agent_is_not_evaluated_where_the_spaces_differ_unless_requested(case):
    options, message = ELSEWHERE[case]
    config = ami.recipes.gym(BOUNDED)
    with closing(config.env.build(1)) as env_:
        agent = build(config, env_.spec).eval()
    other = replace(config.env, options=options)
    with pytest.raises(ConfigError, match=message) as raised:
        ami.evaluate(agent, other, mode="react", episodes=1)
    assert "\n" not in str(raised.value)
    accepted = replace(other, accept_other_spaces=True)
    if case == "dtype":
        with pytest.raises(ConfigError, match=message):
            ami.evaluate(agent, accepted, mode="react", episodes=1)
    else:
        assert ami.evaluate(agent, accepted, mode="react", episodes=1)["return"]["mean"] == 0.0


@pytest.mark.parametrize("name", ["strength", "sight"])
def test_bounds_of_any_size_are_compared(name):
    def differences(*sizes):
        specs = []
        for size in sizes:
            with closing(replace(BOUNDED, options={name: size}).build(1)) as env:
                specs.append(env.spec)
        return list(env_spec.differences(*specs))

    (found,) = differences(1e-11, 1e-9)
    assert not found.in_kind
    assert not differences(1e-11, 1e-11 * (1 + 1e-7))  # rounding


def test_training_is_refused_where_it_would_be_evaluated_with_other_bounds(tmp_path):
    config = ami.recipes.gym(BOUNDED)
    evaluation = replace(config.eval_env, options={"strength": 100.0})
    with pytest.raises(ConfigError, match=r"must be alike: .*actions from \[-100.\]"):
        ami.train(replace(config, eval_env=evaluation), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_signals_that_differ_in_name_or_order_are_refused():
    config = ami.recipes.gym(BOUNDED)
    with closing(config.env.build(1)) as env_:
        spec = env_.spec
    swapped = spec._replace(interoception=("alive", "reward"))
    with pytest.raises(ConfigError, match=r"interoception reward, alive, but .* alive, reward"):
        check_same_spaces(swapped, spec, config.env)
    check_same_spaces(spec, spec, config.env)


def test_a_run_keeps_the_spaces_of_its_environment(tmp_path):
    """So that it is loaded without the environment, and not resumed in another."""
    config = ami.recipes.gym(BOUNDED)
    with closing(config.env.build(1)) as env_:
        spec = env_.spec
    run_dir.create(tmp_path / "run", config, 0, "cpu", spec)
    gone = replace(config, env=replace(config.env, id="ami-test/Gone-v0"))
    assert run_dir.spec_of(tmp_path / "run", gone) == spec
    path = tmp_path / "run" / run_dir.SPACES
    path.write_text(path.read_text().replace("1.0", "2.0"))
    with pytest.raises(ConfigError, match=r"actions from \[-1.\] .*trained with .*\[-2.\]"):
        ami.train(config, out=tmp_path / "run", resume=True)
