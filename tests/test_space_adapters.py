"""Whatever an environment's spaces, the agent gets vectors and images and acts in numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from hypothesis import given
from hypothesis import strategies as st

from ami_agent.adapters.spaces import obs_fields
from ami_agent.adapters.tensors import OutOfBoundsError, action_adapter
from modules.perception.multi_modal import MultiModalEncoderConfig
from modules.types import ConfigError

U8, F32, F64 = np.uint8, np.float32, np.float64


def read(space, obs, stack=1):
    """A batch as it is read, by name."""
    made = {name: reader(obs) for name, reader in obs_fields(space, stack).items()}
    for name, reader in obs_fields(space, stack).items():
        assert made[name].shape[1:] == reader.modality.shape
        assert torch.as_tensor(made[name]).dtype == reader.modality.dtype
    return made


@pytest.mark.parametrize(
    ("space", "shape", "dtype"),
    [
        (spaces.Box(-1, 1, (3,), F64), (3,), torch.float64),
        (spaces.Box(-1, 1, (), F32), (1,), torch.float32),
        (spaces.Box(0, 255, (6,), U8), (6,), torch.float32),
        (spaces.Box(-1, 1, (4, 3), F32), (4, 3), torch.float32),
        (spaces.Box(0, 255, (64, 48, 3), U8), (3, 64, 48), torch.uint8),
        (spaces.Box(0, 255, (3, 64, 48), U8), (3, 64, 48), torch.uint8),
        (spaces.Box(0, 255, (64, 48), U8), (1, 64, 48), torch.uint8),
        (spaces.Box(0, 1, (20, 30, 4), F32), (4, 20, 30), torch.float32),
        (spaces.Box(-1, 1, (2, 5, 3, 2), F32), (60,), torch.float32),
        (spaces.Discrete(4, start=-1), (4,), torch.float32),
        (spaces.MultiDiscrete([2, 3]), (5,), torch.float32),
        (spaces.MultiBinary([2, 2]), (4,), torch.float32),
    ],
)
def test_every_leaf_becomes_a_vector_a_one_hot_vector_or_an_image(space, shape, dtype):
    (reader,) = obs_fields(space).values()
    assert reader.modality == (shape, dtype)
    batch = batch_space(space, 5)
    batch.seed(0)
    read(space, batch.sample())


def test_an_image_keeps_its_pixels_wherever_its_channels_were():
    first = np.random.default_rng(0).integers(0, 255, (2, 3, 9, 10), U8)
    last = np.moveaxis(first, 1, -1)
    for obs in (first, last):
        assert np.array_equal(read(spaces.Box(0, 255, obs.shape[1:], U8), obs)["obs"], first)
    fraction = last / np.float32(255)
    for low, numbers in ((0, fraction), (-1, 2 * fraction - 1)):
        (made,) = read(spaces.Box(low, 1, last.shape[1:], F32), numbers).values()
        assert np.array_equal(made, np.moveaxis(numbers, -1, 1))


@pytest.mark.parametrize("dtype", [U8, F32])
def test_stacked_gray_frames_become_channels_and_keep_their_pixels(dtype):
    frames = np.random.default_rng(0).integers(0, 255, (2, 4, 20, 16)).astype(dtype)
    (made,) = read(spaces.Box(0, 255, frames.shape[1:], dtype), frames, stack=4).values()
    assert np.array_equal(made, frames)


def test_stacked_frames_are_channels_or_concatenated_numbers():
    films = np.random.default_rng(0).integers(0, 255, (2, 4, 9, 10, 3), U8)
    (made,) = read(spaces.Box(0, 255, films.shape[1:], U8), films, stack=4).values()
    assert np.array_equal(made[:, 3:6], np.moveaxis(films[:, 1], -1, 1))
    paths = np.arange(24, dtype=F32).reshape(2, 4, 3)
    (made,) = read(spaces.Box(0, 99, (4, 3), F32), paths, stack=4).values()
    assert np.array_equal(made, paths.reshape(2, 12))


def test_frames_that_the_env_itself_stacks_are_one_image():
    films = np.random.default_rng(0).integers(0, 255, (2, 4, 9, 10, 3), U8)
    space = spaces.Box(0, 255, films.shape[1:], U8)
    (single,) = read(space, films).values()
    assert single.shape == (2, 12, 9, 10)
    (output,) = read(space, films, stack=4).values()
    assert np.array_equal(single, output)
    again = films[:, None].repeat(2, 1)  # and once more
    (twice,) = read(spaces.Box(0, 255, again.shape[1:], U8), again, stack=2).values()
    assert np.array_equal(twice, np.concatenate([single, single], 1))


def test_nested_parts_are_modalities_named_by_their_path():
    space = spaces.Dict(
        arm=spaces.Dict(angle=spaces.Box(-1, 1, (2,), F32), grip=spaces.Discrete(2)),
        eyes=spaces.Tuple([spaces.Box(0, 255, (8, 8), U8), spaces.Box(0, 255, (8, 8), U8)]),
        obs=spaces.MultiBinary(3),
    )
    batch = batch_space(space, 4)
    batch.seed(1)
    obs = batch.sample()
    made = read(space, obs)
    assert set(made) == {"arm/angle", "arm/grip", "eyes/0", "eyes/1", "obs_"}
    assert np.array_equal(made["eyes/1"][:, 0], obs["eyes"][1])
    assert np.array_equal(made["arm/grip"].argmax(1), obs["arm"]["grip"])


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Text(5), "observations are Text.*wrap the environment"),
        (spaces.Dict(a=spaces.Graph(spaces.Box(-1, 1, (2,)), None)), "'a' is Graph.*wrap"),
        (spaces.Sequence(spaces.Discrete(2)), "Sequence.*wrap"),
        (spaces.Dict(), "nothing to observe"),
        (spaces.Box(-1, 1, (0,), F32), "nothing to observe"),
    ],
)
def test_spaces_that_can_not_be_read_are_named_with_a_remedy(space, message):
    with pytest.raises(ConfigError, match=message):
        obs_fields(space)


@pytest.mark.parametrize(
    ("numbers", "out_of_bounds"), [([0.0, 1.000005], None), ([0.0, 1.5], 1.5), ([-9.0, 0.0], -9.0)]
)
def test_a_number_far_outside_its_space_is_found(numbers, out_of_bounds):
    obs = np.array([[0.0, 0.0], numbers], F32)
    for low in ([-1, -1], [-1, -np.inf]):
        space = spaces.Box(np.array(low, F32), np.ones(2, F32))
        (reader,) = obs_fields(space, out_of_bounds="refuse").values()
        if out_of_bounds is None:
            assert np.array_equal(reader(obs), obs)
        else:
            with pytest.raises(OutOfBoundsError) as message:
                reader(obs)
            assert message.value.number == pytest.approx(out_of_bounds)
    (open_ended,) = obs_fields(spaces.Box(-np.inf, np.inf, (2,), F32)).values()
    assert np.array_equal(open_ended(obs), obs)


@pytest.mark.parametrize(
    ("space", "shown"),
    [
        (spaces.Discrete(3), [1, 5]),
        (spaces.Discrete(3), [0, -1]),
        (spaces.MultiDiscrete([3, 3]), [[4, 0]]),
        (spaces.Box(0, 200, (8, 8, 3), U8), np.full((1, 8, 8, 3), 255, U8)),
    ],
)
def test_an_invalid_choice_is_never_read_as_another(space, shown):
    (reader,) = obs_fields(space, out_of_bounds="refuse").values()
    with pytest.raises(OutOfBoundsError):
        reader(np.array(shown))


def test_two_parts_of_one_name_are_refused():
    part = spaces.Box(-1, 1, (2,), F32)
    for twice in ({"a.b": part, "a_b": part}, {"a/b": part, "a": spaces.Dict(b=part)}):
        with pytest.raises(ConfigError, match="both be called"):
            obs_fields(spaces.Dict(twice))


ACTIONS = [
    spaces.Box(-2, 3, (2,), F32),
    spaces.Box(np.array([[0, -1], [5, 2]]), np.array([[1, 1], [9, 4]]), dtype=F64),
    spaces.Box(0, 10, (3,), np.int64),
    spaces.Discrete(5, start=2),
    spaces.MultiDiscrete([2, 4, 3], start=[0, 1, -1]),
    spaces.MultiDiscrete([[2, 2], [3, 3]]),
    spaces.MultiBinary(3),
]


@pytest.mark.parametrize("space", ACTIONS, ids=str)
@given(seed=st.integers(0, 1000))
def test_actions_survive_the_conversion_to_the_agent_and_back(space, seed):
    ways, batch = action_adapter(space), batch_space(space, 6)
    batch.seed(seed)
    done = batch.sample()
    inside = ways.from_env(done)
    assert inside.shape == (6, ways.size)
    assert np.abs(inside).max() <= 1 + 1e-6
    back = ways.to_env(inside)
    assert back.dtype == batch.dtype
    np.testing.assert_allclose(back, done, atol=1e-5)
    assert batch.contains(back)


@pytest.mark.parametrize("high", [0.1, 0.7, 1.3, 2.9])
def test_extreme_actions_stay_within_the_space(high):
    space = spaces.Box(-high / 3, high, (1,), F32)
    for most in (-1, 1):
        assert space.contains(action_adapter(space).to_env(np.full((1, 1), most, F32))[0])


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Box(-np.inf, np.inf, (2,)), "no bounds.*TransformAction"),
        (spaces.Box(-3.4e38, 3.4e38, (2,)), "bounds too far apart"),
        (spaces.Box(0, 2**63 - 1, (1,), np.int64), "bounds too far apart"),
        (spaces.Dict(a=spaces.Discrete(2)), "Dict.*wrap"),
        (spaces.Text(3), "Text.*wrap"),
    ],
)
def test_action_spaces_that_can_not_be_handled_are_named_with_a_remedy(space, message):
    with pytest.raises(ConfigError, match=message):
        action_adapter(space)


def test_binary_actions_may_be_described_as_a_box():
    output = action_adapter(spaces.Box(0, 1, (2,), bool)).to_env(
        np.array([[-1.0, 1.0], [0.4, -0.4]])
    )
    assert output.dtype == bool
    assert output.tolist() == [[False, True], [True, False]]


def test_a_modality_may_have_any_name():
    names = ("training", "", "forward", "a b", "type", "state_dict")
    perception = MultiModalEncoderConfig(vector_dim=4).build(dict.fromkeys(names, (2,)))
    obs = {name: torch.ones(3, 2) for name in names}
    assert perception(obs, {}).shape == (3, 4 * len(names))


def test_too_many_options_are_refused_by_number():
    with pytest.raises(
        ConfigError, match="the discrete actions have 10000000 options, more than 16384"
    ):
        action_adapter(spaces.Discrete(10**7))
