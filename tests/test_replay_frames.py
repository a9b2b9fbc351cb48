"""The replay buffer keeps one frame of a stack, and gives back the stacks that were observed."""

from __future__ import annotations

from collections import deque

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ami_agent as ami
from ami_agent.adapters.env import EnvConfig, behaviour_policy, rollout
from ami_agent.config import override
from ami_agent.memory_estimate import buffer_size, describe_buffer
from ami_agent.train import train
from ami_agent.training import CollectBehaviour
from modules.memory.replay_buffer import OBS_ONLY, Parts, ReplayBuffer
from modules.types import ConfigError, Trajectory, Transition, as_dict

Step = tuple[Tensor, Tensor, Tensor, Tensor, bool, bool]


def make_rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def history(seed: int, steps: int, envs: int, stack: int, longest: int) -> list[Transition]:
    """Steps of environments that show the last `stack` frames `[2, 3]`, as
    FrameStackObservation does; episodes have random lengths from 1 on."""
    rng = np.random.default_rng(seed)
    frames = [deque(maxlen=stack) for _ in range(envs)]

    def frame(first: bool, env: int) -> torch.Tensor:
        now = torch.from_numpy(rng.integers(0, 256, (2, 3), dtype=np.uint8))
        for _ in range(stack if first else 1):
            frames[env].append(now)
        return torch.cat(list(frames[env]))

    left = rng.integers(1, longest + 1, envs)
    obs = torch.stack([frame(True, env) for env in range(envs)])
    done, found = np.zeros(envs, bool), []
    for _ in range(steps):
        resets, done = done, np.zeros(envs, bool)
        left = np.where(resets, rng.integers(1, longest + 1, envs), left - 1)
        done = ~resets & (left == 0)
        following = torch.stack([frame(bool(resets[env]), env) for env in range(envs)])
        is_done = torch.from_numpy(done)
        died = is_done & torch.from_numpy(rng.random(envs) < 0.5)
        action = torch.from_numpy(rng.random((envs, 1)).astype(np.float32))
        found.append(Transition(obs, action, action + 1, following, died, is_done & ~died))
        obs = following
    return found


def episodes(steps: list[Transition], env: int) -> list[list[tuple[int, Transition]]]:
    """The steps of one environment by episode, without those that only reset."""
    found, done = [[]], False
    for number, step in enumerate(steps):
        if done:
            found.append([])
        else:
            found[-1].append((number, step))
        done = bool(step.terminated[env] | step.truncated[env])
    return found


def expected(
    steps: list[Transition], envs: int, capacity: int, length: int
) -> dict[tuple, Trajectory]:
    """All windows by the number of their first step and environment."""
    found, padded, oldest, short_ones = {}, {}, len(steps) - capacity, False
    for env in range(envs):
        for episode in episodes(steps, env):
            done = episode and bool(episode[-1][1].terminated[env] | episode[-1][1].truncated[env])
            for start, (number, _) in enumerate(episode):
                window = [step for _, step in episode[start : start + length]]
                if number < oldest or not (done or len(window) == length):
                    continue
                obs = torch.stack([window[0].obs[env], *(s.next_obs[env] for s in window)])
                parts = ("action", "interoception", "terminated")
                rest = (torch.stack([getattr(s, n)[env] for s in window]) for n in parts)
                kept = found if len(window) == length else padded
                kept[number, env] = Trajectory(obs, *rest, torch.zeros(()))
                short_ones |= done and len(episode) < length
    found |= padded if short_ones else {}
    return found


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000), steps=st.integers(1, 40), envs=st.integers(1, 3),
    stack=st.integers(1, 5), capacity=st.integers(1, 25), length=st.integers(1, 6),
    longest=st.integers(1, 9), saved=st.booleans(),
)  # fmt: skip
def test_a_window_is_what_was_observed_bit_for_bit(
    seed, steps, envs, stack, capacity, length, longest, saved
):
    taken = history(seed, steps, envs, stack, longest)
    memory = ReplayBuffer(capacity, taken[0], "cpu", stack)
    for step in taken:
        memory.add(step)
    if saved:
        again = ReplayBuffer(capacity, taken[0], "cpu", stack)
        again.load_state_dict({name: part.clone() for name, part in memory.state_dict().items()})
        memory = again
    target = expected(taken, envs, capacity, length)
    if not target:
        with pytest.raises(ConfigError):
            memory.sample(4, length, make_rng())
        return
    sampled = memory.sample(30 * len(target), length, make_rng(seed))
    by_action = {(float(w.actions[0, 0]), len(w.actions)): w for w in target.values()}
    met = set()
    for index, episode_steps in enumerate(sampled.num_valid.tolist()):
        found = by_action[float(sampled.actions[index, 0, 0]), episode_steps]
        met.add((float(found.actions[0, 0]), episode_steps))
        assert torch.equal(sampled.obs[index, : episode_steps + 1], found.obs)
        assert torch.equal(sampled.actions[index, :episode_steps], found.actions)
        assert torch.equal(sampled.interoception[index, :episode_steps], found.interoception)
        assert torch.equal(sampled.terminated[index, :episode_steps], found.terminated)
        beyond = sampled.obs[index, episode_steps + 1 :]
        assert torch.equal(beyond, found.obs[-1:].expand_as(beyond))
        assert not sampled.actions[index, episode_steps:].any()
        assert not sampled.interoception[index, episode_steps:].any()
    assert len(met) == len(by_action)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), stack=st.integers(2, 4), capacity=st.integers(6, 40))
def test_whole_episodes_are_copied_between_buffers_even_without_their_beginning(
    seed, stack, capacity
):
    taken = history(seed, 40, 1, stack, 20)
    one = ReplayBuffer(capacity, taken[0], "cpu", stack)
    for step in taken:
        one.add(step)
    numbers = one.episode_ids()
    other = ReplayBuffer(capacity + 3 * len(numbers) + stack, taken[0], "cpu", stack)
    for number in numbers:
        other.add_episode(one.get_episode(number))
    assert len(other) == len(one)
    for mine, theirs in zip(other.episode_ids(), numbers, strict=True):
        for part, like in zip(
            other.get_episode(mine)[:4], one.get_episode(theirs)[:4], strict=True
        ):
            assert torch.equal(part, like)
    observed = []
    states = one.map_observations(
        lambda obs, is_first: observed.append(obs) or obs[:, :, 0].float()
    )
    kept = [taken[0].obs, *(step.next_obs for step in taken)][-capacity - 1 :]
    assert torch.equal(torch.stack(observed), torch.stack(kept))
    sampled, output = (m.sample(50, 1, make_rng()) for m in (one, states))
    assert torch.equal(output.states, sampled.obs[..., 0].float())


class Shown(gymnasium.Env):
    """Two kinds of observations at once."""

    observation_space = Dict(
        picture=Box(0, 255, (8, 9, 3), np.uint8), numbers=Box(-9, 9, (2,), np.float32),
        kind=Discrete(3),
    )  # fmt: skip
    action_space = Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 6))
        return self.look(), {}

    def step(self, action):
        self.left -= 1
        return self.look(), 1.0, self.left == 0, False, {}

    def look(self):
        random = self.np_random
        return {
            "picture": random.integers(0, 256, (8, 9, 3), dtype=np.uint8),
            "numbers": random.uniform(-9, 9, 2).astype(np.float32),
            "kind": int(random.integers(3)),
        }


@pytest.fixture(autouse=True, scope="module")
def _known():
    gymnasium.register("ami-test/Shown-v0", entry_point=Shown)
    yield
    del gymnasium.registry["ami-test/Shown-v0"]


@pytest.mark.parametrize("stack", [1, 2, 4])
def test_stacks_of_gymnasium_s_wrapper_are_returned_unchanged(stack):
    env = EnvConfig(id="ami-test/Shown-v0", frame_stack=stack, terminal_channel=True).build(2)
    obs, _ = env.reset(0)
    whole = ReplayBuffer(60, env.spec.empty_transition(2), "cpu")
    frames = ReplayBuffer(60, env.spec.empty_transition(2), "cpu", stack)
    for _, collected in zip(range(90), rollout(behaviour_policy(env), env, obs), strict=False):
        whole.add(collected.transition)
        frames.add(collected.transition)
    for length in (1, 3):
        one, other = (m.sample(200, length, make_rng(), 2) for m in (whole, frames))
        assert torch.equal(one.num_valid, other.num_valid)
        for name, part in as_dict(one.obs).items():
            assert torch.equal(part, as_dict(other.obs)[name]), name
    sizes = [sum(p.nbytes for n, p in m.state_dict().items() if n.startswith("obs"))
             for m in (whole, frames)]  # fmt: skip
    assert sizes[1] < 1.1 * sizes[0] / stack


def test_observations_that_are_no_stack_of_frames_are_refused():
    taken = history(0, 5, 1, 3, 9)
    memory = ReplayBuffer(9, taken[0], "cpu", 3)
    memory.add(taken[0])
    with pytest.raises(ConfigError, match="not a stack of 3 frames"):
        memory.add(taken[1]._replace(next_obs=taken[3].next_obs))
    is_first = ReplayBuffer(9, taken[0], "cpu", 3)
    with pytest.raises(ConfigError, match="begins with the first frame repeated"):
        is_first.add(taken[2])
    with pytest.raises(ConfigError, match="not a stack of 4 frames"):
        ReplayBuffer(9, taken[0], "cpu", 4)


def test_only_requested_parts_are_read():
    taken = history(0, 20, 2, 2, 9)
    named = [
        step._replace(obs={"eye": step.obs, "hand": step.action},
                      next_obs={"eye": step.next_obs, "hand": step.action}) for step in taken
    ]  # fmt: skip
    memory = ReplayBuffer(30, named[0], "cpu")
    for step in named:
        memory.add(step)
    whole = memory.sample(50, 2, make_rng())
    hand = memory.sample(50, 2, make_rng(), parts=Parts(obs=("hand",), actions=False))
    assert set(hand.obs) == {"hand"}
    assert torch.equal(hand.obs["hand"], whole.obs["hand"])
    assert torch.equal(hand.interoception, whole.interoception)
    assert hand.actions.shape == (50, 0, 1)
    observed = memory.sample(50, 2, make_rng(), parts=OBS_ONLY)
    assert torch.equal(observed.obs["eye"], whole.obs["eye"])
    assert not observed.interoception.numel()


def test_the_memory_of_a_buffer_is_known_and_reported_before_it_is_allocated(tmp_path):
    config = ami.recipes.gym(EnvConfig(id="ami-test/Shown-v0", frame_stack=4))
    env = config.env.build(1)
    example = env.spec.empty_transition(2)
    memory = ReplayBuffer(50, example, "cpu", 4)
    taken = {**memory._store, "age": memory._age, "episode": memory._episode, "d": memory._done}
    assert ReplayBuffer.num_bytes(50, example, 4) == sum(part.nbytes for part in taken.values())
    message = describe_buffer(config, env.spec)
    steps = config.stages["collect"].steps + config.stages["actor_critic"].steps + 2
    assert f"replay buffer: {steps:,} steps of " in message
    assert "3x8x9 uint8" in message
    assert message.endswith("MiB")
    assert buffer_size(config, env.spec) == ReplayBuffer.num_bytes(
        steps, env.spec.empty_transition(1), 4
    )


def test_a_buffer_larger_than_this_machine_is_refused_in_one_line(tmp_path):
    config = ami.recipes.gym(EnvConfig(id="ami-test/Shown-v0"))
    config = override(config, {"stages.collect": CollectBehaviour(num_envs=1, steps=10**9)})
    with pytest.raises(ConfigError, match=r"the replay buffer would take about .*--collect\.steps"):
        train(config, out=tmp_path / "run")
