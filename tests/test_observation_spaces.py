"""How the observations of any environment are read: layouts, images of all kinds, numbers outside
their space, parts that can't be read, and a bound on what an agent for them may weigh."""

from __future__ import annotations

import logging
import re
from contextlib import closing
from dataclasses import replace
from io import StringIO
from typing import ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from rich.console import Console

import ami_agent as ami
from ami_agent.adapters.env import EnvConfig
from ami_agent.adapters.fault_tolerance import EnvError
from ami_agent.adapters.spaces import ignored_fields, obs_fields
from ami_agent.adapters.tensors import _already_warned, read_obs
from ami_agent.config import build, override
from ami_agent.data.reader import open_dataset
from ami_agent.data.runs import RunRecording
from ami_agent.logger import RunLogger
from ami_agent.train import RunOptions, Trainer
from modules.perception.image import ImageEncoderConfig
from modules.perception.multi_modal import MultiModalEncoderConfig
from modules.types import ConfigError
from tests.conftest import error_line, small

U8, F32, F64 = np.uint8, np.float32, np.float64
Box = spaces.Box
PLANE = """
import gymnasium
import numpy as np
from tests.test_observation_spaces import Shows

space = gymnasium.spaces.Box(0, 1, (84, 84), np.float32)
gymnasium.register("ami-test/Plane-v0", entry_point=lambda: Shows(space))
"""


class Shows(gymnasium.Env):
    """Returns the observations that it is given."""

    action_space = spaces.Discrete(2)

    def __init__(self, space, shown=None, goal=None):
        self.observation_space, self.shown, self.goal = space, shown, goal

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._look(), self._info()

    def step(self, action):
        self.steps += 1
        return self._look(), float(action), False, self.steps == 5, self._info()

    def _look(self):
        return self.observation_space.sample() if self.shown is None else self.shown(self.steps)

    def _info(self):
        return {} if self.goal is None else {"goal": self.goal}


@pytest.fixture
def shows(request):
    """A function that registers such an environment under an id of its own."""
    known = []

    def register(space, **options):
        known.append(f"ami-test/Shows-{request.node.name.partition('[')[0]}-{len(known)}-v0")
        gymnasium.register(
            known[-1], entry_point=lambda: Shows(space, **options), disable_env_checker=True
        )  # which would warn as well
        return known[-1]

    _already_warned.clear()
    yield register
    for name in known:
        gymnasium.registry.pop(name, None)


def read(space, obs, **how):
    """A batch of observations as it is read, by name."""
    return read_obs(obs_fields(space, **how), obs, "observation")


@pytest.mark.parametrize(
    ("shape", "dtype", "read_as"),
    [
        ((9, 9, 20), F32, "image, 9x9, 20 channels, float32, channels last"),
        ((10, 10, 10), F32, "image, 10x10, 10 channels, float32, channels last"),
        ((8, 8, 111), F32, "image, 8x8, 111 channels, float32, channels last"),
        ((111, 8, 8), F32, "image, 8x8, 111 channels, float32, channels first"),
        ((12, 40, 16), F32, "image, 12x40, 16 channels, float32, channels last"),
        ((84, 84, 4), U8, "image, 84x84, 4 channels, uint8, channels last"),
        ((4, 84, 84), U8, "image, 84x84, 4 channels, uint8, channels first"),
        ((12, 84, 84), U8, "image, 84x84, 12 channels, uint8, channels first"),
        ((9, 64, 48), U8, "image, 64x48, 9 channels, uint8, channels first"),
        ((3, 8, 64), F32, "image, 8x64, 3 channels, float32, channels first"),
        ((1, 16, 12), U8, "image, 16x12, 1 channel, uint8, channels first"),
        ((16, 12, 1), U8, "image, 16x12, 1 channel, uint8, channels last"),
        ((210, 160, 3), U8, "image, 210x160, 3 channels, uint8, channels last"),
        ((10, 84, 12), U8, "image, 10x84, 12 channels, uint8, channels last"),
        ((4, 84, 84, 1), U8, "image, 84x84, 4 frames, 1 channel, uint8, channels last"),
        ((84, 84), F32, "image, 84x84, 1 channel, float32, channels last"),
        ((84, 84), F64, "image, 84x84, 1 channel, float64, channels last"),
        ((20, 20), np.int64, "image, 20x20, 1 channel, int64, channels last"),
        ((16, 12), U8, "image, 16x12, 1 channel, uint8, channels last"),
        ((10, 6), F32, "set, 10 vectors of 6 numbers each, float32"),
        ((7, 7, 3), U8, "vector, 147 numbers (shape (7, 7, 3)), uint8"),
        ((6, 7, 2), F32, "vector, 84 numbers (shape (6, 7, 2)), float32"),
        ((1,), F64, "vector, 1 number, float64"),
    ],
)
def test_the_layout_of_a_box_follows_from_its_shape_and_is_reported(shape, dtype, read_as):
    space = Box(0, 1, shape, dtype)
    (reader,) = obs_fields(space).values()
    assert reader.summary == read_as
    (found,) = read(space, space.sample()[None]).values()
    assert (tuple(found.shape[1:]), found.dtype) == reader.modality


def test_an_array_without_bounds_is_no_image():
    high = np.arange(1, 721, dtype=F32).reshape(30, 24)
    for space in (Box(-np.inf, np.inf, (30, 24), F32), Box(np.zeros_like(high), high)):
        assert obs_fields(space)["obs"].summary.startswith("set, 30 vectors of 24 numbers")


@pytest.mark.parametrize(
    ("shape", "dtype", "stack", "expected"),
    [
        ((224, 224, 3), U8, 1, (3, 56, 56)),
        ((210, 160, 3), U8, 1, (3, 53, 40)),  # the last row of squares is cut off
        ((2, 65, 66), F32, 1, (2, 17, 17)),
        ((4, 84, 84), U8, 4, (4, 21, 21)),
        ((4, 84, 84, 3), U8, 4, (12, 21, 21)),
    ],
)
def test_a_downsampled_pixel_is_the_mean_over_a_square(shape, dtype, stack, expected):
    space = Box(0, 255, shape, dtype)
    array = space.sample()[None]
    (whole,) = read(space, array, stack=stack).values()
    (found,) = read(space, array, stack=stack, downsample=4).values()
    (reader,) = obs_fields(space, stack, downsample=4).values()
    assert (tuple(found.shape[1:]), found.dtype) == reader.modality == (expected, whole.dtype)
    assert f"downsampled to {expected[1]}x{expected[2]}" in reader.summary
    tolerance = 0.5 if dtype == U8 else 1e-3
    for row, column in [(0, 0), (1, 2), (expected[1] - 1, expected[2] - 1)]:
        square = whole[..., 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].float()
        mean = square.mean((-2, -1))
        assert (found[..., row, column].float() - mean).abs().max() <= tolerance


def test_the_evaluation_has_to_be_downsampled_alike(tmp_path, capsys):
    flags = ("--env.image-downsample", 5, "--perception.patch", 4, "--out", tmp_path / "run")
    message = error_line(capsys, "train", "two-rooms", *flags)
    assert "--env.image-downsample is 5, --eval-env.image-downsample 1" in message


def test_means_over_small_bytes_are_not_rounded():
    space = Box(0, 1, (32, 32, 3), U8)
    array = space.sample()[None]
    (found,) = read(space, array, downsample=4).values()
    assert found.dtype == torch.float32
    assert float(found.mean()) == pytest.approx(array.mean(), abs=1e-4)


def test_only_images_are_downsampled():
    space = spaces.Dict(camera=Box(0, 255, (32, 32, 3), U8), joints=Box(-1, 1, (9,), F32))
    obs = {name: array[None] for name, array in space.sample().items()}
    found = read(space, obs, downsample=2)
    assert found["camera"].shape == (1, 3, 16, 16)
    assert found["joints"].equal(torch.as_tensor(obs["joints"]))


def test_an_agent_of_downsampled_images_takes_whole_ones(tmp_path):
    env = EnvConfig(id="ami/TwoRooms-v0", variant="fixed", image_downsample=5)
    changes = {"env": env, "eval_env": env, "perception.patch": 4}
    config = small(override(ami.recipes.two_rooms(), changes))
    stages = {name: config.stages[name] for name in ("collect", "train_jepa")}
    config = replace(config, stages=stages)
    agent = ami.train(config, out=tmp_path, keep_replay_buffer=True)
    envs = gymnasium.make_vec("ami/TwoRooms-v0", num_envs=2, variant="fixed")
    obs, info = envs.reset(seed=0)
    assert obs.shape == (2, 2, 65, 65)
    assert agent.spec.shapes == {"obs": (2, 13, 13)}
    controller = ami.load(tmp_path).controller(num_envs=2, task=ami.Task(goal=info["goal"]))
    assert controller.act(obs).action.shape == (2, 2)
    with closing(env.build(1)) as adapter:
        assert open_dataset(str(tmp_path), {}, adapter).num_episodes >= 8
    with pytest.raises(ConfigError, match=r"has downsampled its images.*--env.image-downsample"):
        RunRecording(tmp_path)


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((84, 84), "vector", (7056,)),
        ((84, 84), "set", (84, 84)),
        ((20, 9, 9), "channels-last", (9, 20, 9)),
        ((9, 9, 20), "channels-first", (9, 9, 20)),
        ((6, 7, 2), "channels-last", (2, 6, 7)),
        ((5, 4), "channels-last", (1, 5, 4)),
        ((4, 8, 8, 8), "channels-first", (32, 8, 8)),
    ],
)
def test_the_layout_can_be_set(shape, layout, expected):
    space = Box(0, 1, shape, F32)
    assert obs_fields(space, layouts={"obs": layout})["obs"].modality.shape == expected
    array = np.random.default_rng(0).uniform(size=(2, *shape)).astype(F32)
    (found,) = read(space, array, layouts={"obs": layout}).values()
    assert np.array_equal(np.sort(found.flatten(1)), np.sort(array.reshape(2, -1)))
    if layout == "channels-last" and len(shape) == 3:
        assert np.array_equal(found[:, 1], array[..., 1])


@pytest.mark.parametrize(
    ("space", "layouts", "said"),
    [
        (Box(0, 1, (3,)), {"obs": "channels-last"}, "image has 2 axes"),
        (Box(0, 1, (9, 9, 3)), {"obs": "set"}, "can.t be read as set"),
        (spaces.Discrete(3), {"obs": "vector"}, "the only obs_layout is ignore"),
        (spaces.Dict(a=Box(0, 1, (3,))), {"b": "vector"}, "names 'b'; the observations are a"),
        (spaces.Dict(a=Box(0, 1, (3,))), {"a": "ignore"}, "nothing to observe"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(space, layouts, said):
    with pytest.raises(ConfigError, match=said):
        obs_fields(space, layouts=layouts)


def encoded(space, array, **settings):
    """The first layer's view of every channel, `[N, C]` sums, once it has adapted."""
    obs = read(space, array)
    perception = MultiModalEncoderConfig(vector_dim=0, patch=0, **settings).build(
        {name: tuple(part.shape[1:]) for name, part in obs.items()}
    )
    perception.adapt(obs)
    return obs, perception


@pytest.mark.parametrize(
    ("high", "dtype", "top"),
    [
        ((1, 1, 1, 10_000), F32, (1, 1, 1, 10_000)),  # colours beside a depth in millimetres
        ((255, 255), F32, (1, 1)),
        ((1e6, np.inf), F32, (1, 0.01)),
        ((np.finfo(F32).max,), F32, (1,)),
        ((65535, 65535), np.uint16, (65535, 12)),
        ((10,), np.int64, (10,)),
        ((255,), U8, (10,)),  # symbols
        ((1,), U8, (1,)),
        ((1,), np.int8, (1,)),
        ((1,), np.bool_, (1,)),
        ((1e9,), F64, (1e-3,)),
    ],
)
def test_every_channel_of_an_image_keeps_its_distinctions(high, dtype, top):
    """A change of a channel by its whole range has the same weight in the encoder in each."""
    space = Box(np.zeros((16, 16, len(high)), dtype),
                np.broadcast_to(np.array(high).astype(dtype), (16, 16, len(high))).copy(),
                dtype=dtype)  # fmt: skip
    fraction = np.random.default_rng(0).integers(0, 2, (64, 16, 16, len(high)))
    array = (fraction * np.array(top)).astype(dtype)
    obs, perception = encoded(space, array)
    for channel in range(len(high)):
        levels = obs["obs"][:, channel].unique()
        assert len(levels) == 2
    patches = perception.branches["obs"][0]
    with torch.no_grad():
        found = patches(obs["obs"])
        patches.low.zero_()
        patches.span.fill_(255)
        usual = patches(torch.as_tensor(255 * fraction.astype(U8)).movedim(-1, 1))
    torch.testing.assert_close(found, usual, atol=1e-4, rtol=1e-4)


def test_close_bounds_far_from_zero_survive_single_precision():
    low = 1.7e9
    space = Box(low, low + 100, (16, 16, 1), F64)
    array = low + np.arange(100.0).reshape(-1, 1, 1, 1) * np.ones((1, 16, 16, 1))
    assert len(read(space, array)["obs"].unique()) == 100
    whole = Box(2**40, 2**40 + 100, (16, 16, 1), np.int64)
    assert len(read(whole, array.astype(np.int64) - 1_700_000_000 + 2**40)["obs"].unique()) == 100


@pytest.mark.parametrize(("dtype", "low"), [(F32, 10_000), (np.uint16, 60_000), (U8, 240)])
def test_a_small_range_far_from_zero_is_scaled_from_0_to_1(dtype, low):
    fraction = np.random.default_rng(0).integers(0, 2, (64, 16, 16, 1))
    obs, perception = encoded(Box(0, low + 10, (16, 16, 1), dtype), (low + fraction).astype(dtype))
    patches = perception.branches["obs"][0]
    with torch.no_grad():
        found = patches(obs["obs"])
        patches.low.zero_()
        patches.span.fill_(255)
        usual = patches(torch.as_tensor(255 * fraction.astype(U8)).movedim(-1, 1))
    torch.testing.assert_close(found, usual, atol=1e-3, rtol=1e-3)


def test_bytes_that_use_their_range_are_scaled_as_before():
    array = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3)).astype(U8)
    obs, perception = encoded(Box(0, 255, (16, 16, 3), U8), array)
    patches = perception.branches["obs"][0]
    assert patches.low.tolist() == [0, 0, 0]
    assert patches.span.tolist() == [255, 255, 255]
    assert obs["obs"].dtype == torch.uint8


def test_a_constant_channel_that_varies_later_stays_near_zero():
    picture = np.full((32, 16, 16, 2), 5000, F32)
    picture[:16, ..., 0] = 0
    _, perception = encoded(Box(0, np.inf, (16, 16, 2), F32), picture)
    patches = perception.branches["obs"][0]
    assert patches.low.tolist() == [0, 5000]
    assert patches.span.tolist() == [5000, 5000]


def test_other_encoders_read_floats_from_0_to_1_as_bytes():
    encoder = ImageEncoderConfig().build({"obs": (3, 20, 20)})
    pixels = torch.randint(256, (2, 3, 20, 20), generator=torch.Generator().manual_seed(0))
    for gains in ({}, {"obs": 0.5}):
        torch.testing.assert_close(
            encoder(pixels.to(torch.uint8), gains), encoder(pixels / 255, gains)
        )


def test_every_image_has_patches_of_its_own_size():
    shapes = {"map": (3, 8, 8), "camera": (3, 210, 160), "long": (1, 16, 4000)}
    perception = MultiModalEncoderConfig(patch=0).build(shapes)
    assert {n: s[0].patch for n, s in perception.branches.items()} == {
        "map": 1, "camera": 20, "long": 16,
    }  # fmt: skip
    weights = {n: sum(p.numel() for p in s.parameters()) for n, s in perception.branches.items()}
    assert max(weights.values()) < 1_500_000


def test_an_agent_with_too_many_parameters_is_refused_before_it_is_built(shows):
    space = spaces.Dict(near=Box(0, 1, (3,), F32), view=Box(0, 1, (400, 6, 40), F32))
    config = ami.recipes.gym(EnvConfig(id=shows(space)))
    with closing(config.env.build(1)) as env, pytest.raises(ConfigError) as refused:
        build(config, env.spec)
    said = str(refused.value)
    assert "more than max_parameters 50,000,000" in said
    assert "due to observation 'view', (96000,)" in said
    assert "--env.obs-layout view channels-last" in said
    assert "\n" not in said


def test_the_bound_on_parameters_can_be_set(shows):
    config = ami.recipes.gym(EnvConfig(id=shows(Box(0, 1, (3,), F32))))
    with closing(config.env.build(1)) as env:
        build(config, env.spec)
        with pytest.raises(ConfigError, match="more than max_parameters 1,000: "):
            build(replace(config, max_parameters=1000), env.spec)


OUTSIDE = [
    (lambda step: np.array([0.0, 1.56 if step else 0.0], F32), r"holds 1.56 at \[1\], above"),
    (lambda step: np.array([-1.6 if step else 0.0, 0.0], F32), r"holds -1.6 at \[0\], below"),
    (lambda step: np.array([0.0, 1e9], F64), "holds 1e.09"),
]


@pytest.mark.parametrize(("shown", "said"), OUTSIDE)
def test_a_number_outside_its_box_is_passed_with_one_warning(shows, caplog, shown, said):
    name = shows(Box(-1.5, 1.5, (2,), F32), shown=shown)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):  # however often the environment is built
            with closing(EnvConfig(id=name).build(2)) as env:
                obs, _ = env.reset(0)
                for _ in range(8):
                    obs = env.step(obs, torch.zeros(2, 2)).transition.next_obs
    assert obs[0].tolist() == pytest.approx(shown(2).tolist())
    (output,) = (record.getMessage() for record in caplog.records)
    assert name in output
    assert "1.5" in output
    assert "--env.out-of-bounds" in output
    assert re.search(said, output)


@pytest.mark.parametrize("dtype", [F32, F64])
def test_a_number_whose_square_is_infinite_is_refused_as_in_the_python_interface(shows, dtype):
    name = shows(Box(-np.inf, np.inf, (1,), dtype), shown=lambda step: np.array([1e30], dtype))
    with closing(EnvConfig(id=name).build(1)) as env, pytest.raises(EnvError, match="beyond 1e"):
        env.reset(0)


def test_a_clock_in_nanoseconds_is_observed(shows):
    now = np.array([1_790_000_000_000_000_000], np.int64)
    name = shows(Box(0, 2**63 - 1, (1,), np.int64), shown=lambda step: now)
    with closing(EnvConfig(id=name).build(1)) as env:
        assert env.reset(0)[0].item() == now.item()
        assert env.spec.interface.read(now, None).item() == now.item()


@pytest.mark.parametrize(("shown", "said"), OUTSIDE)
def test_a_number_outside_its_box_is_clipped_or_refused_by_setting(shows, caplog, shown, said):
    name = shows(Box(-1.5, 1.5, (2,), F32), shown=shown)
    with closing(EnvConfig(id=name, out_of_bounds="clip").build(1)) as env:
        obs, _ = env.reset(0)
        obs = env.step(obs, torch.zeros(1, 2)).transition.next_obs
        assert obs.abs().max() == 1.5
    refused = EnvConfig(id=name, out_of_bounds="refuse").build(1)
    with closing(refused) as env, pytest.raises(EnvError, match=said):
        env.step(env.reset(0)[0], torch.zeros(1, 2))


def test_rounding_is_no_reason_to_warn(caplog):
    space = Box(-np.pi, np.pi, (1,), F32)
    for mode in ("pass", "refuse"):
        read(space, np.array([[np.pi + 1e-6]]), out_of_bounds=mode)
    assert not caplog.records


@pytest.mark.parametrize("mode", ["pass", "clip", "refuse"])
@pytest.mark.parametrize(
    ("space", "shown", "said"),
    [
        (Box(-1, 1, (2,), F32), [[np.nan, 0]], "holds NaN or infinity"),
        (Box(-1, 1, (2,), F32), [[np.inf, 0]], "holds NaN or infinity"),
        (Box(-1, 1, (16, 16, 3), F32), np.full((1, 16, 16, 3), np.nan), "holds NaN or infinity"),
        (Box(0, 255, (8, 8, 3), U8), np.full((1, 8, 8, 3), 300), "not of its space"),
        (Box(0, 255, (8, 8, 3), U8), np.full((1, 8, 8, 3), 0.5), "not of its space"),
        (Box(0, 255, (8, 8, 3), U8), np.zeros((1, 3, 8, 8), U8), "not of its space"),
        (Box(-1, 1, (2,), F32), [[0.0, 0, 0]], "not of its space"),
        (Box(-1, 1, (2, 3), F32), np.zeros((1, 3, 2)), "not of its space"),
        (Box(-1, 1, (2,), F32), "text", "not of its space"),
        (spaces.Discrete(3), [3], "holds 3, above its high 2, outside its space Discrete"),
        (spaces.Discrete(3, start=2), [1], "holds 1, below its low 2"),
        (spaces.MultiDiscrete([3, 3]), [[0, 4]], r"holds 4 at \[1\], above its high 2"),
        (spaces.MultiBinary(2), [[0, 2]], r"holds 2 at \[1\]"),
    ],
)
def test_invalid_observations_are_refused_whatever_the_setting(space, shown, said, mode):
    with pytest.raises(EnvError, match=said):
        read(space, np.array(shown), out_of_bounds=mode)


def test_numbers_of_another_dtype_that_fit_are_accepted():
    (found,) = read(Box(0, 255, (8, 8, 1), U8), np.full((1, 8, 8, 1), 7)).values()
    assert found.dtype == torch.uint8
    (found,) = read(Box(-1, 1, (2,), F32), np.array([[0.5, 1.0]], F64)).values()
    assert found.tolist() == [[0.5, 1.0]]


def test_a_goal_outside_the_space_is_treated_alike(shows, caplog):
    name = shows(Box(-1, 1, (2,), F32), goal=np.array([0.0, 1.2], F32))
    with closing(EnvConfig(id=name).build(1)) as env:
        _, info = env.reset(0)
        assert env.goal(info).tolist() == [[0.0, pytest.approx(1.2)]]
    assert "goal, info['goal'], holds 1.2" in caplog.text
    with closing(EnvConfig(id=name, out_of_bounds="clip").build(1)) as env:
        _, info = env.reset(0)
        assert env.goal(info).tolist() == [[0.0, 1.0]]


PARTS = {"place": Box(-1, 1, (2,), F32), "none": Box(0, 1, (0,), F32), "mission": spaces.Text(9)}


def shown_with(text):
    return lambda step: {
        "place": np.zeros(2, F32), "none": np.zeros(0, F32), "mission": text(step),
    }  # fmt: skip


def test_texts_and_arrays_without_numbers_are_ignored_in_a_dict_and_named(shows, caplog):
    name = shows(spaces.Dict(PARTS), shown=shown_with(lambda step: "go"))
    with closing(EnvConfig(id=name).build(2)) as env:
        assert set(env.spec.modalities) == {"place"}
        said = "\n".join(env.obs_summary())
        assert "mission: ignored: the agent reads no text" in said
        assert "none: ignored: it holds no number" in said
        obs, _ = env.reset(0)
        for _ in range(8):
            obs = env.step(obs, torch.zeros(2, 2)).transition.next_obs
        assert obs["place"].shape == (2, 2)
    assert not caplog.records


def test_a_text_that_varies_is_reported_once(shows, caplog):
    name = shows(spaces.Dict(PARTS), shown=shown_with(lambda step: "ab"[step % 2]))
    with closing(EnvConfig(id=name).build(2)) as env:
        obs, _ = env.reset(0)
        for _ in range(4):
            obs = env.step(obs, torch.zeros(2, 2)).transition.next_obs
    (output,) = (record.getMessage() for record in caplog.records)
    assert "observation 'mission' varies ('a', then 'b')" in output


class Words(spaces.Space):
    """A text of the environment's own type."""

    def __init__(self):
        super().__init__(dtype=str)

    def sample(self, mask=None, probability=None):
        return "word"

    def contains(self, x):
        return isinstance(x, str)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (spaces.Sequence(spaces.Discrete(3)), "observation 'odd' is Sequence.*ignore"),
        (spaces.Graph(Box(0, 1, (2,)), None), "observation 'odd' is Graph.*ignore"),
    ],
)
def test_informative_parts_are_ignored_only_when_requested(part, said):
    space = spaces.Dict(place=PARTS["place"], odd=part)
    with pytest.raises(ConfigError, match=said):
        obs_fields(space)
    assert set(obs_fields(space, layouts={"odd": "ignore"})) == {"place"}
    (left,) = ignored_fields(space, {"odd": "ignore"})
    assert left.summary == "ignored, by --env.obs-layout"
    assert set(obs_fields(spaces.Dict(place=PARTS["place"], odd=Words()))) == {"place"}


class Batch(gymnasium.vector.VectorEnv):
    """Shows a frame of its own, as Atari's vector version does."""

    metadata: ClassVar = {"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP}

    def __init__(self, num_envs, stack_num=1):
        self.num_envs = num_envs
        self.single_observation_space = Box(0, 255, (stack_num, 12, 12), U8)
        self.single_action_space = spaces.Discrete(2)
        self.action_space = spaces.MultiDiscrete([2] * num_envs)


@pytest.fixture
def two_versions():
    name = "ami-test/TwoVersions-v0"
    gymnasium.register(
        name, entry_point=lambda: Shows(Box(0, 255, (21, 16, 3), U8)), vector_entry_point=Batch
    )
    yield name
    gymnasium.registry.pop(name)


def test_a_flag_that_replaces_the_native_vector_version_by_other_observations_says_so(two_versions):
    def said(**flags):
        with closing(EnvConfig(id=two_versions, **flags).build(1)) as env:
            return env.obs_summary()

    assert said() == ["obs: image, 12x12, 1 channel, uint8, channels first"]
    for flags in ({"frame_stack": 4}, {"max_episode_steps": 50, "action_repeat": 2}):
        image, output = said(**flags)
        assert "21x16" in image
        for flag, value in flags.items():
            assert f"--env.{flag.replace('_', '-')} {value}" in output
        assert (
            "its own vector version, which is used without, observes Box(0, 255, (1, 12, 12)"
            in output
        )
    assert len(said(frame_stack=4, vectorization_mode="sync")) == 1


def test_the_recipe_s_own_limit_replaces_nothing(two_versions):
    config = ami.recipes.gym(EnvConfig(id=two_versions))
    assert config.env.max_episode_steps == 0
    assert config.perception.patch == 0


def test_the_reading_of_observations_is_reported_as_training_starts(shows, tmp_path):
    config = small(ami.recipes.gym(EnvConfig(id=shows(Box(0, 1, (84, 84), F32)))), 1)
    said = Console(file=StringIO(), width=200)
    with closing(RunLogger(tmp_path, said)) as logger:
        Trainer(config, tmp_path, 0, "cpu", logger, False, RunOptions())
    first, _ = said.file.getvalue().split("\n", 1)
    assert first == "obs: image, 84x84, 1 channel, float32, channels last"


def test_too_many_parameters_are_refused_before_a_run_is_created(tmp_path, monkeypatch, capsys):
    (tmp_path / "plane.py").write_text(PLANE)
    monkeypatch.chdir(tmp_path)
    env = ("--env.import", "plane.py", "--env.id", "ami-test/Plane-v0")
    try:
        said = error_line(
            capsys, "train", "gym", *env, "--out", "run", "--max-parameters", 10**6,
            "--env.obs-layout", "obs", "vector",
        )  # fmt: skip
        assert "due to observation 'obs', (7056,)" in said
        assert not (tmp_path / "run").exists()
    finally:
        gymnasium.registry.pop("ami-test/Plane-v0", None)


def test_numbers_that_goals_are_about_come_first_in_the_state_and_the_others_follow():
    shapes = {"arm": (3,), "block": (2,)}
    obs = {"arm": torch.randn(64, 3), "block": torch.randn(64, 2)}

    def state(**settings):
        perception = MultiModalEncoderConfig(vector_dim=0, **settings).build(shapes)
        perception.adapt(obs)
        return perception(obs, {})

    assert torch.equal(state(leading_dims=(4, 2)), state()[:, [4, 2, 0, 1, 3]])
    for wrong in [(1, 1), (5,)]:
        with pytest.raises(ConfigError, match="different indices below 5"):
            state(leading_dims=wrong)
