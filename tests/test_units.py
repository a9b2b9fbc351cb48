"""Training does not depend on the units of observations and rewards, nor on a constant part of
them; episode limits are found and reported."""

from __future__ import annotations

import json
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

import ami_agent as ami
from ami_agent.adapters.env import EnvConfig
from ami_agent.adapters.spaces import obs_fields
from ami_agent.config import Config, override
from ami_agent.logger import Logger, format_number
from ami_agent.storage import run_dir
from ami_agent.training import CollectBehaviour, OnlineActorCritic
from ami_agent.training.critics import discount_for, lambda_returns, with_terminal_values
from modules.actor.planning import GradientPlannerConfig, RolloutEvaluator
from modules.actor.planning.evaluator import safe_std
from modules.actor.policy import BoxActions
from modules.cost.drives import Drives, InteroceptiveCost
from modules.cost.value_critics import ValueCritics
from modules.memory.replay_buffer import ReplayBuffer
from modules.nets import StandardizedHead
from modules.perception.multi_modal import StandardizedInput
from modules.types import Rollout, TaskContext, Transition
from tests.conftest import Stepping


class Scales(gymnasium.Env):
    """One number, shown in units of `unit` and shifted, says which of two actions has reward `k`; a
    step has reward `off`. `late`: a second number, of no use, that is 0 for 260 steps."""

    action_space = spaces.Discrete(2)
    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    steps = 0

    def __init__(self, k=1.0, off=0.0, unit=1.0, shift=0.0, late=0.0, own=0, dies=False):
        self.k, self.off, self.unit, self.shift, self.late = k, off, unit, shift, late
        self.dies = dies
        if own:
            self.max_steps = own

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.look(), {}

    def look(self):
        self.sign = self.np_random.choice([-1.0, 1.0])
        extra = self.late * self.np_random.uniform() if self.steps > 260 else 0.0
        return np.array([self.sign * self.unit + self.shift, extra])

    def step(self, action):
        right = float((action == 1) == (self.sign > 0))
        self.t += 1
        Scales.steps += 1
        over = self.t == 10
        reward = self.k * right + self.off
        ends = over and self.dies
        return self.look(), reward, ends, over and not ends, {"is_success": bool(right)}


class Said(Logger):
    """Keeps the messages of a run."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(autouse=True)
def _known():
    Scales.steps = 0
    if "ami-test/Scales-v0" not in gymnasium.registry:
        gymnasium.register("ami-test/Scales-v0", entry_point=Scales)


def config_of(steps: int = 0, updates: int = 3, batch_size: int = 8, **options) -> Config:
    config = ami.recipes.gym(EnvConfig(id="ami-test/Scales-v0", options=options))
    assert isinstance(config.stages["actor_critic"], OnlineActorCritic)
    objective, interact = config.stages["train_jepa"], config.stages["actor_critic"]
    return override(
        config,
        {
            "stages.collect": CollectBehaviour(num_envs=1, steps=200 if steps > 50 else 40),
            "stages.train_jepa": replace(objective, optim=replace(objective.optim, steps=updates)),
            "stages.actor_critic": replace(
                interact,
                steps=steps or 16,
                optim=replace(interact.optim, batch_size=batch_size),
                train_jepa=replace(
                    interact.train_jepa,
                    optim=replace(interact.train_jepa.optim, batch_size=batch_size),
                ),
            ),
        },
    )


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        (np.float64, torch.float64),
        (np.int64, torch.float64),
        (np.int32, torch.float64),
        (np.float32, torch.float32),
        (np.uint8, torch.float32),
        (np.int16, torch.float32),
    ],
)
def test_numbers_arrive_in_a_precision_that_holds_them(dtype, kept):
    (reader,) = obs_fields(spaces.Box(0, 100, (2,), dtype)).values()
    assert reader.modality.dtype == kept
    assert torch.as_tensor(reader(np.zeros((1, 2), dtype))).dtype == kept


@pytest.mark.parametrize(
    ("shift", "unit"), [(0, 1e-8), (0, 1e8), (1.7e9, 1), (1e9, 10), (0, 1e-30), (0, 1e30), (5, 0.1)]
)
def test_observations_are_standardised_whatever_their_unit(shift, unit):
    plain = torch.randn(500, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one, other = StandardizedInput((3,)), StandardizedInput((3,))
    one.adapt(plain)
    other.adapt(shift + unit * plain)
    torch.testing.assert_close(other(shift + unit * plain), one(plain), atol=1e-4, rtol=1e-3)
    assert other(shift + unit * plain).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_is_no_signal(dtype):
    constant = torch.full((100, 1), 1e6, dtype=dtype)
    constant[::2] *= 1 + torch.finfo(dtype).eps
    branch = StandardizedInput((1,))
    branch.adapt(constant)
    assert branch.scale.item() == 1


@pytest.mark.parametrize("size", [1e6, 1e-6])
def test_a_number_that_varies_late_gets_its_scale_and_the_others_keep_theirs(size):
    random = torch.Generator().manual_seed(0)
    early = torch.randn(500, 2, generator=random)
    early[:, 1] = 0
    branch = StandardizedInput((2,))
    branch.adapt(early)
    mean, scale = branch.mean.clone(), branch.scale.clone()
    branch.update_units(early)
    assert torch.equal(branch.scale, scale)
    late = torch.randn(100, 2, generator=random)
    late[:, 1] = size * torch.rand(100, generator=random)
    branch.update_units(torch.cat([early, late]))
    assert branch.mean[0] == mean[0]
    assert branch.scale[0] == scale[0]
    shown = branch(late)[:, 1]
    assert shown.abs().max() < 10
    assert shown.std() > 0.1


def test_targets_are_centred_before_they_lose_their_precision():
    rewards = 10 + 1e-6 * (torch.arange(100, dtype=torch.float64)[:, None] % 2)
    layers = StandardizedHead(nn.Linear(1, 1), 1)
    layers.adapt(rewards, torch.tensor([True]))
    relative = layers.subtract_offset(rewards)
    assert relative.dtype == torch.float32
    assert relative.max() - relative.min() == pytest.approx(1e-6, rel=1e-4)
    assert layers.scale.item() == pytest.approx(5e-7, rel=0.02)
    layers.adapt(rewards, torch.tensor([False]))
    assert layers.offset.item() == 0


@pytest.mark.parametrize(("rare", "unit"), [(1e6, 1e6), (1e-6, 1e-6), (1.0, 1.0)])
def test_a_rare_reward_becomes_the_unit_of_rewards_that_were_0(rare, unit):
    rewards = torch.zeros(300, 1, dtype=torch.float64)
    layers = StandardizedHead(nn.Linear(1, 1), 1)
    layers.adapt(rewards, torch.tensor([True]))
    rewards[7] = rare
    layers.update_units(rewards, torch.tensor([True]))
    assert layers.scale.item() == pytest.approx(unit)
    assert layers.mean.item() == layers.offset.item() == 0


def test_where_a_unit_grows_the_outputs_stay_the_same():
    layers = StandardizedHead(nn.Linear(1, 2), 2)
    layers.adapt(torch.tensor([[1.0, 1.0], [2.0, 3.0]]))
    state = torch.randn(5, 1)
    before = layers(state)
    grown = layers.update_units(torch.tensor([[1.0, 1.0], [5000.0, 3.0]]), torch.zeros(2).bool())
    assert grown[0] > 100
    assert grown[1] == 1
    torch.testing.assert_close(layers(state), before)


def test_the_offset_of_a_signal_that_varies_is_removed_except_for_ends_of_episodes():
    """`alive` never varied: its offset must stay where an end is worth hundreds of steps."""
    interoception = torch.full((300, 2), 10.0, dtype=torch.float64)
    interoception[:, 1] = 1
    layers = StandardizedHead(nn.Linear(1, 2), 2)
    layers.adapt(interoception)
    centred = torch.tensor([True, False])
    interoception[5, 0] = 11
    layers.update_units(interoception, centred)
    assert layers.offset.tolist() == [10, 0]
    assert layers.scale.tolist() == [1, 0]
    assert torch.equal(layers(torch.randn(4, 1))[:, 1], torch.ones(4))
    interoception[9, 1] = 0
    layers.update_units(interoception, centred)
    assert layers.scale.tolist() == [1, 1]


class Given(ValueCritics):
    """A critic whose output is the state."""

    def __init__(self, discount: float) -> None:
        super().__init__(nn.Identity(), 1, discount)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        return state


def test_a_constant_reward_changes_no_comparison_even_where_episodes_end():
    constant, discount = 10.0, 0.9
    random = torch.Generator().manual_seed(0)
    states = torch.randn(2, 7, 6, 1, generator=random)
    interoception = torch.rand(2, 7, 5, 2, generator=random)  # reward and alive
    drives = Drives(("reward",), ("reward", "alive"))
    whole, centred = (
        InteroceptiveCost(drives, Given(discount)),
        InteroceptiveCost(drives, Given(discount)),
    )
    worth = constant / (1 - discount)
    nothing = torch.empty(2, 7, 5, 0)
    plain = interoception + torch.tensor([constant, 0.0])
    centred.value_critics.set_terminal_value(torch.tensor([constant]), can_terminate=False)
    one = whole(Rollout(states, nothing, nothing, plain), {"reward": 2.0})
    other = centred(Rollout(states + worth, nothing, nothing, interoception), {"reward": 2.0})
    limits = one.pop("limit reward"), other.pop("limit reward")
    torch.testing.assert_close(*limits, atol=1e-4, rtol=1e-4)
    sums = [sum(terms.values()) for terms in (one, other)]
    torch.testing.assert_close(sums[1] - worth, sums[0], atol=1e-3, rtol=1e-4)

    cost, episodes, ahead = -plain[..., 0][0, :, :, None], plain[0, :, :, 1], states[0, :, 1:]
    returns = lambda_returns(cost, ahead, episodes, discount, 0.8)
    cost = with_terminal_values(cost + constant, episodes, discount, torch.tensor([worth]))
    shifted = lambda_returns(cost, ahead + worth, episodes, discount, 0.8)
    torch.testing.assert_close(shifted - worth, returns, atol=1e-3, rtol=1e-4)


def test_values_are_those_of_transitions_and_never_of_resets():
    """The third step only resets; the buffer holds 5 steps of the 7."""

    def step(k: float, over: bool = False) -> Transition:
        flags = torch.tensor([over]), torch.tensor([False])
        obs, after = torch.tensor([[k]]), torch.tensor([[k + 1]])
        return Transition(obs, torch.zeros(1, 1), obs.double() / 10, after, *flags)

    memory = ReplayBuffer(5, step(0.0), "cpu")
    for k in range(7):
        memory.add(step(float(k), over=k == 2))
    assert memory.values("obs").flatten().tolist() == [2, 4, 5, 6]
    assert memory.values("interoception", last_steps=2).flatten().tolist() == pytest.approx(
        [0.5, 0.6]
    )
    assert memory.values("terminated").flatten().tolist() == [True, False, False, False]
    assert memory.has_episode_end()


@pytest.mark.parametrize("unit", [1e-12, 1e-6, 1e6])
def test_planning_does_not_depend_on_the_unit_of_the_energy(unit):
    def make_evaluator(unit: float) -> RolloutEvaluator:
        def imagine(state, actions, chance=None):
            states = state[:, None, None].expand(*actions.shape[:3], -1)
            return Rollout(states, actions, actions[..., :0], actions[..., :0])

        def evaluate(rollout, context):
            return {"miss": unit * (rollout.actions - 0.3).square().sum((-1, -2))}

        return RolloutEvaluator(imagine, imagine, evaluate, BoxActions(), 2)

    found = []
    for each in (1.0, unit):
        config = GradientPlannerConfig(horizon=3, iterations=8)
        evaluator = make_evaluator(each)
        planner = Stepping(config.build(evaluator, evaluator.no_candidates))
        state = torch.zeros(1, 2)
        context = TaskContext(
            "plan", state, {}, {}, {}, state, 3, 8, 1.0, state[:, None], state,
            torch.zeros(1), state.new_empty(1, 0, 3, 2),
        )  # fmt: skip
        found.append(planner(state, context).actions)
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-3)
    assert safe_std(unit * torch.tensor([1.0, 3.0])) == pytest.approx(unit)


@pytest.mark.parametrize(
    ("value", "span", "shown"),
    [
        (10.0, (10.0, 10.0), "10.00"),
        (0.58, (0.5, 0.66), "0.58"),
        (5.8e-6, (5e-6, 6.6e-6), "5.8e-06"),
        (0.0123, None, "0.012"),
        (100.0000077, (100.000005, 100.00001), "100.0000077"),
        (1.23e7, None, "1.23e+07"),
        (0.0, None, "0.00"),
        (-217.346, (-300.0, -150.0), "-217.35"),
    ],
)
def test_figures_are_printed_with_significant_digits(value, span, shown):
    assert format_number(value, span) == shown


@pytest.mark.parametrize(
    ("env", "discount"),
    [
        (EnvConfig(id="ami-test/Scales-v0", options={"own": 125}), 0.96),  # its own max_steps
        (EnvConfig(id="ami-test/Scales-v0", options={"own": 250}, action_repeat=2), 0.96),
        (EnvConfig(id="ami-test/Scales-v0", max_episode_steps=125), 0.96),
        (EnvConfig(id="ami-test/Scales-v0"), 0),  # from the episodes that are collected
        (EnvConfig(id="ami-test/Scales-v0", options={"own": 2**31 - 1}), 0),  # stands for no limit
    ],
)
def test_an_episode_limit_is_read_where_one_is_stated(env, discount):
    config = ami.recipes.gym(env)
    assert config.cost.value_critics.discount == pytest.approx(discount)
    assert (
        config.env.max_episode_steps == env.max_episode_steps
        or config.env.max_episode_steps == 1000
    )


def test_an_undeclared_limit_is_learnt_reported_saved_and_kept(tmp_path):
    message = Said()
    agent = ami.train(config_of(), out=tmp_path / "run", logger=message)
    assert discount_for(10) == 0.95 == agent.cost.interoceptive_cost.value_critics.discount
    assert any("discount follows from the episodes" in line for line in message.lines)
    assert "discount 0.95, for episodes of 10 steps as collected" in message.lines
    assert run_dir.load(tmp_path / "run").cost.interoceptive_cost.value_critics.discount == 0.95


def test_training_episodes_are_logged(tmp_path):
    config = config_of(off=1.0, k=0.0)
    ami.train(config, out=tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for stage in ("collect", "actor_critic"):
        (last,) = [row for row in rows if row["stage"] == stage]
        assert last["episode_return"] == last["episode_length"] == 10


@pytest.mark.parametrize(
    ("options", "end"),
    [
        ({"k": 0.0}, "the reward was 0 at each of 37 steps: nothing to learn from yet"),
        (
            {"k": 0.0, "off": 1e-6, "dies": True},
            "the reward was 1e-06 at each of 37 steps: only how long an episode lasts can be "
            "learnt from",
        ),
    ],
)
def test_a_reward_that_never_varied_is_reported(tmp_path, options, end):
    message = Said()
    ami.train(config_of(**options), out=tmp_path / "run", logger=message)
    assert end in message.lines


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"unit": 1e-8, "k": 1e-6},
        {"shift": 1.7e9, "off": 10.0},
        {"k": 1e-6, "off": 10.0},
        {"unit": 1e8, "k": 1e6},
        {"late": 1e6},
    ],
)
def test_both_modes_learn_in_every_unit(tmp_path, options, seed):
    config = config_of(steps=200, updates=100, batch_size=64, **options)
    agent = ami.train(config, out=tmp_path / "run", seed=seed)
    for mode in ("plan", "react"):
        found = ami.evaluate(agent, config.eval_env, mode=mode, episodes=10)
        right = (found["return"]["mean"] / 10 - options.get("off", 0)) / options.get("k", 1)
        assert right == pytest.approx(1, abs=0.05), mode
