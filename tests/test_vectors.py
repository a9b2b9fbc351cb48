"""Whoever made a world and however many of it are stepped, no two lives are joined, and what goes
wrong in it is told in one line."""

from __future__ import annotations

from contextlib import closing
from itertools import islice, pairwise

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space

from ami_agent.evaluate import play_many
from ami_agent.guard import Failed
from ami_agent.life import WorldConfig, ended, live, walk
from ami_agent.players import aimless
from ami_agent.vectors import called, make
from modules.memory import Memory
from modules.types import UnusableInput

SEEN, DONE = spaces.Box(-1e6, 1e6, (2,), np.float32), spaces.Discrete(2)


class Count(gymnasium.Env):
    """Shows which life this is and how many steps it has; ends, or runs out of time, after some."""

    observation_space, action_space = SEEN, DONE
    lives = 0

    def __init__(self, lasts=3, dies=True, fails_at=-1, shows=None) -> None:
        self.lasts, self.dies, self.fails_at, self.shows = lasts, dies, fails_at, shows

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.lives, self.moment = self.lives + 1, 0
        self.luck = int(self.np_random.integers(1000))
        return self._seen(), {}

    def step(self, action):
        self.moment += 1
        if self.moment == self.fails_at:
            raise RuntimeError("the rope broke")
        over = self.moment == self.lasts
        return self._seen(), float(self.moment), over and self.dies, over and not self.dies, {}

    def _seen(self):
        shown = self.lives if self.shows is None or self.moment < 2 else float(self.shows)
        return np.array([shown, self.moment], np.float32)


class Waits(VectorEnv):
    """The same as a batch that wants to be reset (DISABLED)."""

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012

    def __init__(self, num_envs=1) -> None:
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = SEEN, DONE
        self.observation_space, self.action_space = (
            batch_space(space, num_envs) for space in (SEEN, DONE)
        )
        self.lives, self.moment = np.zeros(num_envs), np.zeros(num_envs)

    def reset(self, *, seed=None, options=None):
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        self.lives, self.moment = self.lives + mask, np.where(mask, 0, self.moment)
        return self._seen(), {"success": np.zeros(self.num_envs, bool)}

    def step(self, actions):
        self.moment = self.moment + 1
        over = self.moment == 3 + np.arange(self.num_envs)
        return self._seen(), self.moment.copy(), over, np.zeros_like(over), {"success": over}

    def _seen(self):
        return np.stack([self.lives, self.moment], 1).astype(np.float32)


class Joined(Waits):
    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012


def strict(num_envs=1):
    """Gymnasium's own that want to be reset: they refuse to step what is over."""
    return SyncVectorEnv([Count] * num_envs, autoreset_mode=AutoresetMode.DISABLED)


class OldStyle(Count):
    def step(self, action):
        return super().step(action)[:4]


KINDS = {"Count": Count, "OldStyle": OldStyle}


@pytest.fixture(autouse=True, scope="module")
def _known():
    for name, kind in KINDS.items():
        gymnasium.register(f"ami-test/{name}-v0", entry_point=kind)
    for batch in (Waits, Joined):
        gymnasium.register(f"ami-test/{batch.__name__}-v0", vector_entry_point=batch)
    gymnasium.register("ami-test/Strict-v0", vector_entry_point=strict)
    yield
    for name in (*KINDS, "Waits", "Joined", "Strict"):
        del gymnasium.registry[f"ami-test/{name}-v0"]


def lived(world, steps, seed=0):
    with closing(world):
        obs, _ = world.reset(seed)
        return list(islice(live(walk(world), world, obs), steps))


@pytest.mark.parametrize(
    "config",
    [
        WorldConfig(id="ami-test/Count-v0"),
        WorldConfig(id="ami-test/Count-v0", options={"dies": False}),
        WorldConfig(id="ami-test/Count-v0", vector="sync", limit=2),
        WorldConfig(id="ami-test/Count-v0", vector="async"),
        WorldConfig(id="ami-test/Waits-v0"),
        WorldConfig(id="ami-test/Strict-v0"),
    ],
    ids=str,
)
def test_memory_never_joins_two_lives(config):
    world = config.build(3)
    steps = lived(world, 40)
    for step, following in pairwise(steps):
        fresh = ended(step)
        assert not following.transition.interoception[fresh].any()
        assert not ended(following)[fresh].any()
    memory = Memory(40, steps[0].transition, "cpu")
    for step in steps:
        memory.remember(step.transition)
    batch = memory.sample(600, 1, torch.Generator().manual_seed(0))
    before, after = batch.states[:, 0], batch.states[:, 1]
    assert torch.equal(before[:, 0], after[:, 0])  # the same life
    assert torch.equal(before[:, 1] + 1, after[:, 1])  # the next moment
    assert torch.equal(batch.interoception[:, 0, 0], after[:, 1])  # what was felt came with it
    lasts = 2 if config.limit else 3
    dies = not config.limit and config.options.get("dies", True)
    if config.id.endswith("Count-v0"):
        assert torch.equal(batch.terminated[:, 0], (after[:, 1] == lasts) & dies)
        assert after[:, 1].max() == lasts


def test_the_pole_that_gymnasium_steps_in_batches_lives_as_one_that_it_steps_alone():
    ways = ("auto", "sync")
    found = [lived(WorldConfig(id="CartPole-v1", vector=way).build(2), 60) for way in ways]
    ends = [torch.stack([step.transition.terminated for step in steps]) for steps in found]
    assert all(end.any() for end in ends)
    for steps in found:
        for step, following in pairwise(steps):
            fresh = step.transition.terminated
            moved = following.transition.next_obs - following.transition.obs
            assert (moved[~fresh].abs() < 1).all()


def test_what_a_world_tells_at_an_end_is_not_lost_where_another_begins_anew():
    outcome = play_many(aimless, WorldConfig(id="ami-test/Waits-v0"), 3, 0, "cpu")
    assert outcome.length.tolist() == [3, 4, 5]
    assert outcome.success.tolist() == [1, 1, 1]
    assert outcome.final_success.tolist() == [1, 1, 1]
    unknown = play_many(aimless, WorldConfig(id="ami-test/Count-v0"), 3, 0, "cpu")
    assert unknown.success.isnan().all()
    assert unknown.felt[:, 0].tolist() == [1 + 2 + 3] * 3


def test_time_that_runs_out_is_no_death_and_only_mortals_feel_it():
    world = WorldConfig(id="ami-test/Count-v0", limit=2, mortal=True).build(1)
    assert world.spec.interoception == ("reward", "alive")
    first, last, *_ = lived(world, 3)
    assert last.transition.truncated.item()
    assert not last.transition.terminated.item()
    assert first.transition.interoception.tolist() == [[1, 1]]
    assert last.transition.interoception.tolist() == [[2, 1]]
    dead = lived(WorldConfig(id="ami-test/Count-v0", mortal=True).build(1), 3)[-1]
    assert dead.transition.interoception.tolist() == [[3, 0]]


def test_an_action_that_is_held_adds_up_what_it_earns_and_ends_with_the_life():
    world = WorldConfig(id="ami-test/Count-v0", repeat=2).build(1)
    first, second = lived(world, 2)
    assert first.transition.interoception.item() == 1 + 2
    assert second.transition.interoception.item() == 3
    assert second.transition.terminated.item()


def test_moments_are_stacked_the_latest_last():
    world = WorldConfig(id="ami-test/Count-v0", stack=3).build(1)
    assert world.spec.shapes == {"obs": (6,)}
    seen = [step.transition.next_obs[0].tolist() for step in lived(world, 2)]
    assert seen[1][1::2] == [0, 1, 2]


def test_the_seed_decides_the_life_in_every_way_of_stepping():
    def drawn(vector, seed):
        return lived(WorldConfig(id="Pendulum-v1", vector=vector).build(2), 5, seed)[-1].transition

    for vector in ("sync", "async"):
        one, same, other = drawn(vector, 7), drawn("sync", 7), drawn(vector, 8)
        assert torch.equal(one.next_obs, same.next_obs)
        assert not torch.equal(one.next_obs, other.next_obs)


def test_what_is_in_a_file_is_known_once_it_is_imported(tmp_path):
    own = tmp_path / "own.py"
    own.write_text(
        "import gymnasium\n"
        "gymnasium.register('ami-test/Own-v0', entry_point='gymnasium.envs.classic_control:"
        "PendulumEnv', max_episode_steps=9)\n"
    )
    with pytest.raises(UnusableInput, match=r"Own.*--env\.import"):
        WorldConfig(id="ami-test/Own-v0").build(1)
    assert WorldConfig(id="ami-test/Own-v0", imports=(str(own),)).build(1).spec.action_dim == 1
    del gymnasium.registry["ami-test/Own-v0"]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            WorldConfig(id="CartPole-v1", imports=("no_such_module",)),
            "'no_such_module' can't be imp",
        ),
        (WorldConfig(id="CartPole-v1", imports=("no_such.py",)), "no file no_such.py"),
        (WorldConfig(id="ami-test/Count-v0", options={"colour": 3}), "can't be made.*colour"),
        (WorldConfig(id="not an id"), "can't be made"),
    ],
)
def test_worlds_that_can_not_be_made_are_refused_in_one_line(config, said):
    with pytest.raises(UnusableInput, match=said):
        config.build(2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("vector", ["sync", "async"])
def test_a_world_that_breaks_in_the_middle_says_what_happened(vector):
    config = WorldConfig(id="ami-test/Count-v0", vector=vector, options={"fails_at": 2})
    with pytest.raises(Failed, match=r"failed in step: RuntimeError: .*the rope broke"):
        lived(config.build(2), 3)


@pytest.mark.filterwarnings("ignore")  # Gymnasium has much to say about such worlds
def test_a_world_of_the_old_kind_and_one_that_lies_about_its_space_are_told_apart():
    with pytest.raises(Failed, match=r"failed in step: .*`info` returned"):
        lived(WorldConfig(id="ami-test/OldStyle-v0").build(1), 1)
    for shown, said in ((np.nan, "holds NaN"), (5e6, "holds 5e.06.* outside its space")):
        config = WorldConfig(
            id="ami-test/Count-v0", options={"shows": str(shown)}, out_of_bounds="refuse"
        )
        with pytest.raises(Failed, match=said):
            lived(config.build(1), 3)


@pytest.mark.parametrize("told", [{"limit": 30}, {"repeat": 2}, {"stack": 2}])
def test_what_would_hide_what_our_worlds_offer_is_refused_but_for_who_asks_for_it(told):
    with pytest.raises(UnusableInput, match=r"one by one, without the walks.*max_episode_steps 30"):
        make("ami/TwoRooms-v0", 2, {}, **told)
    make("ami/TwoRooms-v0", 2, {}, vector="sync", **told).close()
    make("CartPole-v1", 2, {}, **told).close()  # is many by itself, and has nothing to hide


@pytest.mark.parametrize("text", ["raise ValueError('oh')", "import sys; sys.exit(0)"])
def test_a_function_of_somebody_s_that_fails_is_told_in_a_line(tmp_path, text):
    file = tmp_path / "own.py"
    file.write_text(f"def make():\n    {text}\n")
    with pytest.raises(UnusableInput, match=r"own\.py:make failed: (ValueError: oh|SystemExit: 0)"):
        called(f"{file}:make", "settings")
    file = tmp_path / "other_own.py"
    file.write_text(text)
    for _ in range(2):  # nobody gets half of it the second time
        with pytest.raises(UnusableInput, match=r"own\.py' can't be imported: (Value|SystemExit)"):
            called(f"{file}:make", "settings")
    with pytest.raises(UnusableInput, match=r"'foo' must be FILE\.py:FUNCTION"):
        called("foo", "settings")
