"""Observations that no environment should deliver: the agent acts, or one line says why not, and
afterwards it acts as if nothing had happened."""

from __future__ import annotations

import datetime
import warnings
from contextlib import closing
from decimal import Decimal
from fractions import Fraction
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import event
from hypothesis import strategies as st

import ami_agent as ami
from ami_agent.adapters.env import EnvConfig
from ami_agent.config import build
from modules.types import ConfigError
from tests.fuzz import fuzzed, within_seconds

IMAGE = spaces.Box(0, 255, (16, 16, 3), np.uint8)
SPACES = {
    "vector": spaces.Box(-1, 1, (3,), np.float32),
    "open": spaces.Box(-np.inf, np.inf, (2,), np.float64),
    "number": spaces.Box(0, 1, (), np.float32),
    "image": IMAGE,
    "choice": spaces.Discrete(5, start=-2),
    "bits": spaces.MultiBinary(3),
    "dict": spaces.Dict({"a": IMAGE, "b": spaces.Dict({"c": spaces.MultiDiscrete([2, 3])})}),
    "tuple": spaces.Tuple([spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(3)]),
}
ACTIONS = {
    "vector": spaces.Box(-2, 3, (2,), np.float32),
    "choice": spaces.Discrete(3, start=1),
}


class Blank(gymnasium.Env):
    """Has spaces, and is never stepped."""

    def __init__(self, observed: str = "vector", acted: str = "vector") -> None:
        self.observation_space, self.action_space = SPACES[observed], ACTIONS[acted]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


@pytest.fixture(scope="module")
def agents():
    """An agent for each observation space, made when a test needs it."""
    torch.set_num_threads(1)
    gymnasium.register(
        "fuzz/Blank-v0", entry_point=Blank, max_episode_steps=20, disable_env_checker=True
    )
    made: dict[str, Any] = {}

    def agent(observed: str, acted: str) -> Any:
        if observed + acted not in made:
            options = {"observed": observed, "acted": acted}
            config = ami.recipes.gym(EnvConfig(id="fuzz/Blank-v0", options=options))
            with closing(config.env.build(1)) as env:
                made[observed + acted] = build(config, env.spec).eval()
        return made[observed + acted]

    yield agent
    del gymnasium.registry["fuzz/Blank-v0"]


# --- what an observation may be ------------------------------------------------------------------


class Odd:
    """An object whose conversions fail, each in another way."""

    def __init__(self, failure: type[BaseException]) -> None:
        self.failure = failure

    def fails(self, *_: Any, **__: Any) -> Any:
        raise self.failure("it\nfails")

    __array__ = __len__ = __getitem__ = __float__ = __iter__ = __bool__ = fails


class Itself(dict):
    """A dict that claims to have every key, and holds itself under each."""

    def __missing__(self, key: Any) -> Any:
        return self


def loop() -> list[Any]:
    """A list that holds itself."""
    found: list[Any] = []
    found.append(found)
    return found


def deep(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def doubled(times: int, found: list[Any]) -> list[Any]:
    """A list of 2 ** times lists, in few bytes."""
    for _ in range(times):
        found = [found, found]
    return found


DTYPES = ["f2", "f4", "f8", "i1", "u1", "i4", "i8", "u8", "?", "c8", "U3", "S3", "O", "M8[s]",
          "m8[s]", "V4", "g"]  # fmt: skip
SHAPES = [
    (), (0,), (1,), (2,), (3,), (2, 3), (3, 1), (1, 3), (16, 16, 3), (3, 16, 16), (2, 16, 16, 3),
    (16, 16), (16, 16, 4), (2, 2), (1, 1, 1, 1, 1), (0, 3), (2, 0),
]  # fmt: skip
shapes = st.one_of(st.sampled_from(SHAPES), st.lists(st.integers(0, 4), max_size=5).map(tuple))
numbers = st.one_of(
    st.sampled_from([0, 1, -1, 0.5, 2, 1e30, -1e300, np.nan, np.inf, -np.inf, 10**400, 2**63, True,
                     np.float32(1), np.int8(3), np.float64("nan"), 1j, Decimal("1.5"),
                     Fraction(1, 3)]),
    st.integers(), st.floats(),
)  # fmt: skip


def array(shape: tuple[int, ...], dtype: str, value: Any) -> Any:
    """An array of one value, or of zeros of its kind where it can't hold that."""
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of complex numbers whose imaginary part is lost
            return np.full(shape, value).astype(dtype)
    except (ValueError, TypeError, OverflowError):
        return np.zeros(shape, dtype)


arrays = st.builds(array, shapes, st.sampled_from(DTYPES), numbers)
TORCH_TYPES = [
    torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.int64, torch.bool,
    torch.complex64,
]  # fmt: skip
tensors = st.one_of(
    st.builds(lambda shape, dtype: torch.ones(shape, dtype=dtype), shapes,
              st.sampled_from(TORCH_TYPES)),
    st.sampled_from([
        torch.empty(3, device="meta"), torch.ones(3, requires_grad=True),
        torch.ones(3).to_sparse(), torch.full((3,), torch.nan), torch.ones(2, 3).T,
    ]),
)  # fmt: skip
others = st.one_of(
    st.none(), st.text(max_size=5), st.binary(max_size=5), numbers,
    st.sampled_from([
        object(), int, len, ..., datetime.date(2022, 6, 27), range(3), {1, 2}, slice(3),
        NotImplemented, np.ma.masked, np.ma.array([1.0, 2, 3], mask=[0, 1, 0]), Itself(),
        np.zeros(3, [("a", "f4"), ("b", "i4")]), np.recarray(3, [("a", "f4")]),
        np.array([None, 1, "x"], object), np.array([[1], [1, 2]], object), memoryview(b"abc"),
        np.broadcast_to(np.float32(0), (2**20, 2**10)), np.zeros(3, ">f4"), np.random,
    ]),
    st.builds(loop), st.sampled_from([3, 40, 5000]).map(deep),
    st.builds(doubled, st.sampled_from([3, 40]), st.sampled_from([[], [0.0]])),
    st.sampled_from([ValueError, KeyError, RecursionError, MemoryError]).map(Odd),
)  # fmt: skip
leaves = st.one_of(arrays, tensors, others)
KEYS = ["a", "b", "c", "obs", "", 0, 1, None, "a.b", ("a",)]
anything = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
        st.fixed_dictionaries({"a": inner, "b": st.fixed_dictionaries({"c": inner})}),
    ),
    max_leaves=4,
)  # fmt: skip


def harmed(obs: Any, harms: list[Any], value: Any) -> Any:
    """A valid observation with another value somewhere within it."""
    if isinstance(obs, dict):
        key = harms.pop() % len(obs) if harms else 0
        return {
            n: harmed(v, harms, value) if i == key else v for i, (n, v) in enumerate(obs.items())
        }
    if isinstance(obs, tuple):
        key = harms.pop() % len(obs) if harms else 0
        return tuple(harmed(v, harms, value) if i == key else v for i, v in enumerate(obs))
    return value(obs)


CHANGES = {
    "double": lambda a: np.asarray(a, np.float64), "half": lambda a: np.asarray(a, np.float16),
    "whole": lambda a: np.asarray(a).astype(np.int64), "more": lambda a: np.asarray(a)[None],
    "object": lambda a: np.asarray(a, object), "text": lambda a: np.asarray(a).astype(str),
    "list": lambda a: np.asarray(a).tolist(), "tensor": lambda a: torch.as_tensor(np.asarray(a)),
    "flat": lambda a: np.asarray(a).ravel(), "large": lambda a: np.asarray(a) * 1e6,
    "nan": lambda a: np.asarray(a, np.float32) * np.nan, "same": lambda a: a,
    "beyond": lambda a: np.asarray(a).astype(np.float64) - 300, "none": lambda a: None,
    "half of it": lambda a: np.atleast_1d(a)[..., :1], "bool": lambda a: np.asarray(a, bool),
    "dict": lambda a: {"a": a}, "tuple": lambda a: (a,), "reversed": lambda a: np.asarray(a).T,
}  # fmt: skip


@st.composite
def observations(draw: Any, observed: str, num_envs: int | None) -> Any:
    """Anything at all, or something that is almost of the space."""
    if draw(st.booleans()):
        return draw(anything)
    space = SPACES[observed]
    if num_envs is not None:
        space = gymnasium.vector.utils.batch_space(space, num_envs)
    space.seed(draw(st.integers(0, 100)))
    where = draw(st.lists(st.integers(0, 5), max_size=3))
    change = draw(st.one_of(st.sampled_from(sorted(CHANGES)).map(CHANGES.get), st.none()))
    if change is None:
        other = draw(leaves)
        change = lambda _: other  # noqa: E731
    return harmed(space.sample(), where, change)


@st.composite
def cases(draw: Any) -> tuple[str, str, int | None, Any]:
    observed, acted = draw(st.sampled_from(sorted(SPACES))), draw(st.sampled_from(sorted(ACTIONS)))
    num_envs = draw(st.sampled_from([None, 1, 2]))
    return observed, acted, num_envs, draw(observations(observed, num_envs))


@fuzzed(cases(), st.sampled_from(["act", "set_task", "reset"]), examples=300)
def test_an_observation_is_acted_on_or_refused_in_one_line(agents, case, use):
    observed, acted, num_envs, obs = case
    agent, space = agents(observed, acted), SPACES[observed]
    space.seed(0)
    rows = [space.sample() for _ in range(num_envs or 1)]
    batch = gymnasium.vector.utils.create_empty_array(space, num_envs or 1)
    good = gymnasium.vector.utils.concatenate(space, rows, batch) if num_envs else rows[0]
    task = ami.Task(drives={"reward": 1.0}, mode="react")
    controller, other = (agent.controller(num_envs, task=task) for _ in range(2))
    controller.act(good), other.act(good)
    message = ""
    try:
        if use == "act":
            plan = controller.act(obs)
            actions = [plan.env_action] if num_envs is None else plan.env_action
            assert len(actions) == (num_envs or 1)
            assert all(action in ACTIONS[acted] for action in actions)
        elif use == "set_task":
            controller.set_task(ami.Task(goal=obs, mode="react"))
        else:
            controller.reset(obs)
    except ConfigError as error:
        message = str(error)
        assert message.strip()
        assert "\n" not in message
        assert len(message) < 2000
    event(f"{use} {'refused' if message else 'taken'}")
    if message:
        np.testing.assert_array_equal(controller.act(good).env_action, other.act(good).env_action)


VIEW = np.broadcast_to(np.float32(0), (2**20, 2**20))


@pytest.mark.parametrize("lists", [[VIEW, [VIEW]], doubled(40, [0.0]), doubled(40, [])])
def test_lists_of_more_than_there_is_memory_for_are_refused(agents, lists):
    controller = agents("vector", "vector").controller(num_envs=2)
    with within_seconds(), pytest.raises(ConfigError, match="goal is lists of too many numbers"):
        controller.set_task(ami.Task(goal=lists, mode="react"))
    with within_seconds(), pytest.raises(ConfigError, match="must be bool of shape"):
        controller.reset(lists)


@pytest.mark.parametrize("done", [[0.0, [1.0]], Odd(MemoryError), "yes", [True, 1]])
def test_a_mask_of_done_episodes_is_bools_or_is_refused(agents, done):
    controller = agents("vector", "vector").controller(num_envs=2)
    with pytest.raises(ConfigError, match="it must be bool of shape"):
        controller.reset(done)
