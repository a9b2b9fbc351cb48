"""Every vectorised environment, shown in the smallest one."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from torch import Tensor

from envs.base import SingleEnv, TorchVectorEnv
from envs.batch import scatter
from envs.rng import uniform


class Place(NamedTuple):
    x: Tensor  # [B, 1]


class Line(NamedTuple):
    place: Place
    behaviour: Tensor


class LineWorlds(TorchVectorEnv[Line]):
    """A dot on a line that falls off beyond 1: observed by name, terminated when it fell."""

    factor_names = ("x",)

    def __init__(
        self, num_envs: int = 1, max_episode_steps: int = 5, output: str = "numpy"
    ) -> None:
        super().__init__(
            num_envs,
            spaces.Dict({"x": spaces.Box(-9, 9, (1,)), "far": spaces.Box(0, 9, (1,))}),
            spaces.Box(-1, 1, (1,)),
            max_episode_steps=max_episode_steps,
            device="cpu",
            output=output,
            render_mode=None,
        )

    def _reset_state(self, keys: Tensor, options: dict[str, Any]) -> Line:
        place = Place(uniform(keys, 1)[0] + options.get("shift", 0))
        return Line(place, keys)

    def _step_state(self, state: Line, actions: Tensor) -> Line:
        return state._replace(place=Place(state.place.x + actions.clamp(-1, 1)))

    def _observe(self, state: Line) -> dict[str, Tensor]:
        return {"x": state.place.x.clone(), "far": state.place.x.abs()}

    def _factors(self, state: Line) -> Tensor:
        return state.place.x

    def _info(self, state: Line) -> dict[str, Tensor]:
        return {}

    def _success(self, state: Line) -> Tensor:
        return (state.place.x > 1)[:, 0]

    def _reward(self, state: Line) -> Tensor:
        return state.place.x[:, 0]

    def _terminated(self, state: Line) -> np.ndarray:
        return (state.place.x > 1)[:, 0].numpy()

    def _expert(self, state: Line) -> Tensor:
        return -state.place.x

    def _behave(self, state: Line) -> tuple[Tensor, Tensor]:
        return state.behaviour, torch.ones(self.num_envs, 1)

    def _dynamics_tests(self, keys: Tensor) -> dict[str, Any]:
        return {}

    def _to_pixels(self, factors: Tensor) -> Tensor:
        return factors

    def _draw(self, state: Line) -> Tensor:
        return torch.zeros(self.num_envs, 320, 320, 3, dtype=torch.uint8)


class LineEnv(SingleEnv):
    vector_env = LineWorlds


def still(count):
    return np.zeros((count, 1), np.float32)


def test_an_env_that_ends_early_restarts_alone():
    envs = LineWorlds(3)
    envs.reset(seed=0, options={"shift": -2})
    push = still(3)
    push[1] = 1
    ends = [envs.step(push)[2].tolist() for _ in range(4)]
    assert [end[1] for end in ends] == [False, False, True, False]
    assert not any(end[0] or end[2] for end in ends)
    envs.reset(seed=0)
    born = envs.state.place.x.clone()
    _, reward, terminated, truncated, _ = envs.step(push)
    assert terminated.tolist() == [False, True, False]
    assert not truncated.any()
    assert reward[1] > 1
    _, reward, terminated, truncated, _ = envs.step(push)  # ignored where an episode begins
    assert not terminated.any()
    assert reward[1] == 0
    assert 0 <= envs.state.place.x[1] < 1
    assert envs.state.place.x[1] != born[1]
    assert torch.equal(envs.state.place.x[[0, 2]], born[[0, 2]])
    assert envs._steps.tolist() == [2, 0, 2]


def test_an_early_end_is_forgotten_by_a_reset():
    envs = LineWorlds(1)
    envs.reset(seed=0)
    assert envs.step(np.ones((1, 1), np.float32))[2].all()
    obs, _ = envs.reset(seed=0)
    moved = envs.step(np.full((1, 1), -1, np.float32))[0]
    np.testing.assert_allclose(moved["x"], obs["x"] - 1)


def test_a_step_that_begins_an_episode_never_ends_it():
    class Fleeting(LineWorlds):
        def _terminated(self, state: Line) -> np.ndarray:
            return np.ones(self.num_envs, dtype=bool)

    envs = Fleeting(1)
    envs.reset(seed=0)
    assert [bool(envs.step(still(1))[2]) for _ in range(4)] == [True, False] * 2


def test_observations_by_name_are_in_the_space_of_the_batch():
    envs = LineWorlds(2)
    obs, infos = envs.reset(seed=0)
    assert envs.observation_space.contains(obs)
    assert infos["_factors"].tolist() == [True, True]
    output = infos["factors"].copy()
    envs.step(still(2) + 0.5)
    np.testing.assert_array_equal(infos["factors"], output)  # the returned infos do not change
    envs.reset(seed=0)[1]["factors"][:] = 9  # and may be written on
    assert envs.state.place.x.max() < 1
    obs, _ = LineWorlds(2, output="torch").reset(seed=0)
    assert isinstance(obs, dict)
    assert all(isinstance(part, torch.Tensor) for part in obs.values())


@pytest.mark.filterwarnings("ignore:.*")
def test_one_env_by_itself_is_the_batch_of_one():
    single, envs = LineEnv(), LineWorlds(4)
    check_env(single, skip_render_check=True)
    own, own_infos = single.reset(seed=3)
    obs, infos = envs.reset(seed=0)
    np.testing.assert_array_equal(own["x"], obs["x"][3])
    np.testing.assert_array_equal(own_infos["factors"], infos["factors"][3])
    assert single.factor_names == ("x",)
    np.testing.assert_array_equal(single.expert_action(), -own["x"])
    obs, reward, terminated, truncated, _ = single.step(np.ones(1, np.float32))
    assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
    assert terminated
    assert reward == obs["x"][0]


def test_scatter_replaces_rows_at_any_depth():
    old = Line(Place(torch.zeros(3, 1)), torch.zeros(3, dtype=torch.int64))
    new = Line(Place(torch.tensor([[5.0]])), torch.tensor([7]))
    both = scatter(old, new, torch.tensor([2]))
    assert both.place.x.flatten().tolist() == [0, 0, 5]
    assert both.behaviour.tolist() == [0, 0, 7]


def test_unusable_seeds_and_actions_are_refused():
    envs = LineWorlds(2)
    with pytest.raises(RuntimeError, match="reset"):
        envs.step(still(2))
    with pytest.raises(ValueError, match="3 seeds for 2 environments"):
        envs.reset(seed=[1, 2, 3])
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="it must be"):
        envs.step(still(3))
    with pytest.raises(ValueError, match="environment 1 is not finite"):
        envs.step(np.array([[0], [np.nan]], np.float32))
