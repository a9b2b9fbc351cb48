"""MuJoCo's pictures without shadows, reflections and antialiasing."""

from __future__ import annotations

from contextlib import closing

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import AddRenderObservation

from ami_agent.adapters.env import EnvConfig
from ami_agent.adapters.imports import choose_gl_backend
from ami_agent.adapters.plain_rendering import PlainRendering
from modules.types import ConfigError

ID = "ami-test/SeenCheetah-v0"


def seen_cheetah() -> gymnasium.Env:
    """A HalfCheetah that is observed by its pictures."""
    env = gymnasium.make("HalfCheetah-v5", render_mode="rgb_array", width=64, height=64)
    return AddRenderObservation(env, render_only=True)


@pytest.fixture(autouse=True)
def _registered():
    choose_gl_backend()
    gymnasium.register(ID, entry_point=seen_cheetah, max_episode_steps=50)
    yield
    del gymnasium.registry[ID]


def pictures(plain: bool) -> np.ndarray:
    with closing(EnvConfig(id=ID, plain_rendering=plain).build(1)) as env:
        obs, _ = env.reset(0)
        return obs[0].numpy().astype(float)


def test_the_same_scene_is_drawn_without_light_effects():
    with_effects, plain = pictures(False), pictures(True)
    assert plain.shape == with_effects.shape == (3, 64, 64)
    assert not np.array_equal(plain, with_effects)
    grey, plain_grey = with_effects.mean(0).ravel(), plain.mean(0).ravel()
    assert np.corrcoef(grey, plain_grey)[0, 1] > 0.5  # the same things at the same places


def test_renderers_that_exist_are_made_again():
    env = seen_cheetah()  # it has drawn its first picture
    env.reset(seed=0)
    with closing(PlainRendering(env)) as plain:
        plain.reset(seed=0)
        viewer = plain.unwrapped.mujoco_renderer.viewer
        assert viewer.con.offSamples == 0


class OtherRenderer:
    """Keeps its viewers under another name, as another version of Gymnasium may."""

    is_open = True

    def close(self) -> None:
        self.is_open = False


def test_the_renderers_of_another_gymnasium_stay_as_they_are():
    env = gymnasium.make("HalfCheetah-v5", render_mode="rgb_array")
    env.unwrapped.mujoco_renderer = OtherRenderer()
    with closing(PlainRendering(env)):
        assert env.unwrapped.mujoco_renderer.is_open
        assert not env.unwrapped.model.light_castshadow.any()


def test_lights_cast_no_shadows():
    env = gymnasium.make("HalfCheetah-v5", render_mode="rgb_array")
    assert env.unwrapped.model.light_castshadow.any()
    with closing(PlainRendering(env)):
        model = env.unwrapped.model
        assert not model.light_castshadow.any()
        assert not model.mat_reflectance.any()
        assert model.vis.quality.offsamples == 0


def test_an_environment_without_mujoco_is_refused():
    with pytest.raises(
        ConfigError, match=r"plain_rendering is True, but CartPoleEnv has no MuJoCo model"
    ):
        EnvConfig(id="CartPole-v1", plain_rendering=True).build(1)
    with pytest.raises(ConfigError, match="or plain_rendering would step"):
        EnvConfig(id="ami/TwoRooms-v0", plain_rendering=True).build(1)
