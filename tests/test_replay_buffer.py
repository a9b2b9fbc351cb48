"""The replay buffer returns what was collected, in order, and never two episodes as one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modules.memory.replay_buffer import ReplayBuffer
from modules.types import ConfigError, Trajectory, Transition


def random_steps(seed: int, num_envs: int = 3, ends: float = 0.2) -> Iterator[Transition]:
    """Observations [B, 3] are environment, episode and time; episodes reset as in NEXT_STEP.

    An action repeats the observation it answers, interoception the one it leads to; the action of
    a reset step is -1 and must never be sampled.
    """
    dice = torch.Generator().manual_seed(seed)
    obs = torch.zeros(num_envs, 3)
    obs[:, 0] = torch.arange(num_envs)
    done = torch.zeros(num_envs, dtype=torch.bool)
    while True:
        following = obs + torch.tensor([0.0, 0.0, 1.0])
        following[done] = obs[done] * torch.tensor([1.0, 1.0, 0.0]) + torch.tensor([0.0, 1.0, 0.0])
        action = obs.masked_fill(done[:, None], -1)
        interoception = following.masked_fill(done[:, None], -1)
        ending = (torch.rand(num_envs, generator=dice) < ends) & ~done
        truncated = ending & (torch.rand(num_envs, generator=dice) < 0.5)
        yield Transition(obs, action, interoception, following, ending & ~truncated, truncated)
        obs, done = following, ending


def collect_data(seed: int, steps: int, capacity: int, **how: float) -> ReplayBuffer:
    transitions = list(islice(random_steps(seed, **how), max(steps, 1)))
    memory = ReplayBuffer(capacity, transitions[0], "cpu")
    for transition in transitions[:steps]:
        memory.add(transition)
    return memory


def assert_is_one_window(observed: Trajectory) -> None:
    env, episode, projected_step = observed.obs.unbind(-1)  # each [N, T + 1]
    assert (env == env[:, :1]).all()
    assert (episode == episode[:, :1]).all()
    valid = torch.ones_like(observed.terminated) if observed.valid is None else observed.valid
    assert valid[:, 0].all()
    assert (valid[:, :-1] | ~valid[:, 1:]).all()  # nothing is valid beyond an end
    assert (
        projected_step.diff(dim=1) == valid
    ).all()  # beyond an end the last observation is repeated
    known = valid[..., None]
    torch.testing.assert_close(observed.actions, observed.obs[:, :-1] * known)
    torch.testing.assert_close(observed.interoception, observed.obs[:, 1:] * known)
    assert not (observed.terminated[:, :-1] & valid[:, 1:]).any()
    assert not (observed.terminated & ~valid).any()


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def windows_by_hand(seed: int, steps: int, capacity: int, length: int) -> set[tuple[int, ...]]:
    """(environment, episode, time of the first observation) of all windows, one by one."""
    whole, padded, short_ones = set(), set(), False
    data = list(islice(random_steps(seed), steps))[-capacity:]
    for env in range(3):
        for start in range(len(data)):
            window, done = [], False
            for step in data[start : start + length]:
                if step.action[env, 2] < 0 or done:
                    break
                window.append(step)
                done = bool(step.terminated[env] | step.truncated[env])
            if not window:
                continue
            first = tuple(int(n) for n in window[0].action[env])
            if len(window) == length:
                whole.add(first)
            if done:
                padded.add(first)
                short_ones |= bool(window[-1].next_obs[env, 2] < length)
    return whole | padded if short_ones else whole


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    steps=st.integers(1, 60),
    capacity=st.integers(1, 25),
    length=st.integers(1, 6),
)
def test_samples_exactly_the_windows_that_were_collected(seed, steps, capacity, length):
    memory = collect_data(seed, steps, capacity)
    expected = windows_by_hand(seed, steps, capacity, length)
    if not expected:
        with pytest.raises(ConfigError):
            memory.sample(4, length, dice())
        return
    observed = memory.sample(60 * len(expected), length, dice(seed))
    assert_is_one_window(observed)
    assert {tuple(start) for start in observed.obs[:, 0].long().tolist()} == expected


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), steps=st.integers(10, 60), capacity=st.integers(5, 25))
def test_windows_of_a_group_share_their_episode(seed, steps, capacity):
    observed = collect_data(seed, steps, capacity, ends=0.1).sample(40, 1, dice(seed), group_size=8)
    assert_is_one_window(observed)
    names = observed.obs[:, 0, :2].view(5, 8, 2)
    assert (names == names[:, :1]).all()
    numbers = observed.episode_id.view(5, 8)
    assert (numbers == numbers[:, :1]).all()


@pytest.mark.parametrize("together", [1, 4])
def test_every_window_is_equally_likely(together):
    memory = collect_data(seed=1, steps=40, capacity=30)
    observed = memory.sample(40_000, 2, dice(), together)
    _, counts = observed.obs[:, 0].unique(dim=0, return_counts=True)
    assert len(counts) == len(windows_by_hand(1, 40, 30, 2))
    expected = 40_000 / len(counts)
    assert (counts - expected).abs().max() < 6 * (expected * together) ** 0.5


def test_episode_ids_are_unique():
    observed = collect_data(seed=2, steps=80, capacity=60).sample(5000, 1, dice())
    pairs = torch.cat([observed.episode_id[:, None], observed.obs[:, 0, :2].long()], dim=1).unique(
        dim=0
    )
    assert len(pairs) == len(pairs[:, 0].unique()) == len(pairs[:, 1:].unique(dim=0))
    assert observed.episode_id.dtype == torch.int64


@pytest.mark.parametrize(("steps", "capacity"), [(12, 50), (80, 30)])
def test_returns_whole_episodes(steps, capacity):
    memory = collect_data(seed=3, steps=steps, capacity=capacity)
    windows = [memory.get_episode(episode) for episode in memory.episode_ids()]
    for window in windows:
        assert_is_one_window(window)
    lengths = [window.actions.shape[1] for window in windows]
    assert memory.episode_lengths().tolist() == lengths
    assert sum(lengths) == len(memory)
    assert len(memory) == len(windows_by_hand(3, steps, capacity, 1))
    long = [s for s in windows if s.actions.shape[1] >= 3]
    assert memory.episode_ids(3).tolist() == [int(s.episode_id) for s in long]


def test_the_newest_observation_ends_a_window():
    memory = collect_data(seed=0, steps=5, capacity=9, ends=0.0)
    assert memory.sample(1, 5, dice()).obs[0, :, 2].tolist() == [0, 1, 2, 3, 4, 5]


def test_no_window_crosses_an_interruption():
    memory = collect_data(seed=0, steps=6, capacity=20, ends=0.0)
    memory.start_run()
    for transition in islice(random_steps(seed=1, ends=0.0), 4):
        memory.add(transition)
    observed = memory.sample(300, 3, dice())
    assert_is_one_window(observed)
    assert len(observed.episode_id.unique()) == 6
    with pytest.raises(ConfigError, match="the longest one has 6 steps"):
        memory.sample(1, 7, dice())


@pytest.mark.parametrize("steps", [2, 6, 30])
@pytest.mark.parametrize("capacity", [20, 9])
def test_the_latest_episode_can_be_sampled_by_itself(steps, capacity):
    memory = collect_data(seed=0, steps=steps, capacity=capacity, ends=0.0)
    before = set(memory.episode_ids().tolist())
    memory.start_run()
    with pytest.raises(ConfigError, match="of the latest run"):
        memory.sample(1, 1, dice(), latest_run=True)
    for transition in islice(random_steps(seed=1, ends=0.0), 5):
        memory.add(transition)
    again = collect_data(seed=2, steps=1, capacity=capacity)
    again.load_state_dict(memory.state_dict())
    for kept in (memory, again, memory.map_observations(lambda obs, is_first: obs)):
        observed = kept.sample(300, 2, dice(), latest_run=True)
        assert_is_one_window(observed)
        assert len(observed.episode_id.unique()) == 3
        assert not before & set(observed.episode_id.tolist())
        assert len(observed.obs[:, 0, 2].unique()) == 4  # all of its windows


def test_an_interruption_may_follow_an_end():
    memory = collect_data(seed=0, steps=3, capacity=20, ends=1.0)
    for transition in islice(random_steps(seed=1, ends=0.0), 5):
        memory.start_run()
        memory.add(transition)
    assert len(memory.episode_ids()) == 3 * (2 + 5)
    assert_is_one_window(memory.sample(300, 1, dice()))


def test_new_steps_can_be_sampled_at_once():
    memory = collect_data(seed=0, steps=3, capacity=20, ends=0.0)
    data = islice(random_steps(seed=0, ends=0.0), 3, 6)
    for length, transition in enumerate(data, start=4):
        with pytest.raises(ConfigError):
            memory.sample(1, length, dice())
        memory.add(transition)
        assert len(memory) == 3 * length
        memory.sample(1, length, dice())


@pytest.mark.parametrize("steps", [7, 50])
def test_mapped_observations_keep_the_episodes(steps):
    memory = collect_data(seed=7, steps=steps, capacity=20)
    ours = memory.sample(64, 2, dice())
    theirs = memory.map_observations(lambda obs, is_first: obs[:, :2] + 9).sample(64, 2, dice())
    torch.testing.assert_close(theirs, ours._replace(obs=ours.obs[..., :2] + 9))


@pytest.mark.parametrize("steps", [7, 50])
def test_map_observations_visits_every_stored_step_in_order_with_the_starts_of_episodes(steps):
    memory, shown = collect_data(seed=7, steps=steps, capacity=20), []

    def look(obs: Tensor, is_first: Tensor) -> Tensor:
        shown.append((obs.clone(), is_first.clone()))
        return obs

    memory.map_observations(look)
    data = [t.obs for t in islice(random_steps(seed=7), steps + 1)][-21:]
    torch.testing.assert_close(torch.stack([obs for obs, _ in shown]), torch.stack(data))
    for obs, is_first in shown:
        assert torch.equal(is_first, obs[:, 2] == 0)


def test_a_termination_is_stored_with_its_step_and_a_truncation_is_none():
    data = list(islice(random_steps(seed=3, ends=0.4), 40))
    ends = {
        tuple(step.next_obs[env].tolist())
        for step in data
        for env in step.terminated.nonzero().flatten()
    }
    observed = collect_data(seed=3, steps=40, capacity=40, ends=0.4).sample(4000, 1, dice())
    arrived = [tuple(projected_step) for projected_step in observed.obs[:, 1].tolist()]
    assert observed.terminated[:, 0].tolist() == [
        projected_step in ends for projected_step in arrived
    ]
    assert len(ends) > 10
    assert any(step.truncated.any() for step in data)


def several(seed: int) -> Iterator[Transition]:
    for step in random_steps(seed):
        obs, next_obs = (
            {"eye": o[:, :, None].expand(3, 3, 2).to(torch.uint8), "joints": o}
            for o in (step.obs, step.next_obs)
        )
        yield step._replace(obs=obs, next_obs=next_obs)


def test_observations_may_have_names_and_keep_their_types():
    transitions = list(islice(several(seed=4), 30))
    memory = ReplayBuffer(20, transitions[0], "cpu")
    for transition in transitions:
        memory.add(transition)
    observed = memory.sample(16, 2, dice())
    assert observed.obs["eye"].shape == (16, 3, 3, 2)
    assert observed.obs["eye"].dtype == torch.uint8
    torch.testing.assert_close(observed.obs["eye"][..., 0].float(), observed.obs["joints"])


@pytest.mark.parametrize("steps", [0, 7, 50])
def test_a_restart_changes_nothing(steps):
    memory = collect_data(seed=5, steps=steps, capacity=20)
    again = collect_data(seed=6, steps=33, capacity=20)
    assert again.episode_ids().tolist() != memory.episode_ids().tolist()
    again.load_state_dict({k: v.clone() for k, v in memory.state_dict().items()})
    assert again.episode_ids().tolist() == memory.episode_ids().tolist()
    for transition in islice(random_steps(seed=5), steps, steps + 4):
        memory.add(transition)
        again.add(transition)
    assert len(memory) == len(again)
    for ours, theirs in zip(memory.sample(64, 2, dice()), again.sample(64, 2, dice()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_only_the_filled_part_is_saved():
    assert len(collect_data(seed=0, steps=7, capacity=1000).state_dict()["obs"]) == 8


def broken(transition: Transition, field: str, number: float) -> Transition:
    part: Tensor = getattr(transition, field).clone()
    part[1, 0] = number
    return transition._replace(**{field: part})


@pytest.mark.parametrize("field", ["obs", "action", "interoception", "next_obs"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_refuses_numbers_that_are_not_finite(field, number):
    step = next(random_steps(seed=0))
    message = field.replace("_", " ")
    with pytest.raises(ConfigError, match=f"^{message} of environment 1 is not finite$"):
        ReplayBuffer(9, step, "cpu").add(broken(step, field, number))


def test_refuses_transitions_of_another_shape():
    memory = collect_data(seed=0, steps=5, capacity=9)
    step = next(random_steps(seed=0))
    with pytest.raises(ConfigError, match=r"keeps action as torch.float32 \[3, 3\]"):
        memory.add(step._replace(action=step.action[:, :1]))
    with pytest.raises(ConfigError, match="keeps 9 steps, the saved one 10"):
        memory.load_state_dict(collect_data(seed=0, steps=5, capacity=10).state_dict())
    with pytest.raises(ConfigError, match="groups of 3"):
        memory.sample(4, 1, dice(), group_size=3)
    with pytest.raises(ConfigError, match="no step of episode 99"):
        memory.get_episode(99)


@pytest.mark.parametrize("steps", [5, 30])  # fewer than it keeps, and so many that it wraps around
def test_several_steps_at_once_are_mapped_as_one_after_the_other(steps):
    memory = collect_data(seed=7, steps=steps, capacity=20)
    visited = []

    def encode(obs, begins):
        visited.append((obs, begins))
        return obs[:, :2] * 2

    alone = memory.map_observations(encode)
    one_by_one, visited = visited, []
    together = memory.map_observations(encode, 4)
    assert len(visited) == -(-len(one_by_one) // 4)
    for part in range(2):
        seen = torch.cat([call[part] for call in visited])
        assert torch.equal(seen, torch.cat([call[part] for call in one_by_one]))
    states = [copy.sample(64, 2, dice()).obs for copy in (alone, together)]
    assert torch.equal(*states)
