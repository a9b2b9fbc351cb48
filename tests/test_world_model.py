"""Imagined futures follow from actions, and encodings from pixels."""

from __future__ import annotations

from math import prod

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from modules.perception.image import (
    ImageEncoderConfig,
    KeypointEncoderConfig,
    PatchEmbed,
    SpatialEncoderConfig,
)
from modules.perception.multi_modal import MultiModalEncoderConfig
from modules.perception.target_encoder import (
    EMATargetConfig,
    OnlineTargetConfig,
)
from modules.types import ConfigError, ModalityWeights, Observation
from modules.world_model.dynamics import (
    ConvDynamicsConfig,
    FourierDynamicsConfig,
    MLPDynamicsConfig,
)
from modules.world_model.jepa import (
    EnsembleConfig,
    InteroceptionHeadConfig,
    WorldModel,
    WorldModelConfig,
)
from tests.conftest import stepwise

ENCODERS = {
    "vector": ImageEncoderConfig(patch=4, channels=3, hidden=8, state_dim=5),
    "map": SpatialEncoderConfig(patch=4, channels=2, hidden=4),
    "points": KeypointEncoderConfig(channels=3, points=2, hidden=8, state_dim=5),
    "multi_modal": MultiModalEncoderConfig(patch=4, hidden=8, vector_dim=4, image_dim=5),
}
DYNAMICS = {
    "vector": MLPDynamicsConfig(hidden=8),
    "waves": FourierDynamicsConfig(hidden=8, num_frequencies=5),
    "map": ConvDynamicsConfig(hidden=4),
}
PIXELS = (2, 14, 14)  # three whole patches a side, and two pixels over
NUM_SIGNALS = 3  # I

any_encoder = pytest.mark.parametrize("encoder", ENCODERS)
any_dynamics = pytest.mark.parametrize("dynamics", DYNAMICS)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def picture(count: int = 3, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, *PIXELS), dtype=torch.uint8, generator=rng)


def awake(module: nn.Module) -> nn.Module:
    """No weight is zero any more, as after some training."""
    with torch.no_grad():
        for index, parameter in enumerate(module.parameters()):
            parameter.copy_(0.3 * normal(*parameter.shape, seed=index))
    return module


def world_model(dynamics: str, shape: tuple[int, int, int] = (2, 3, 3)) -> WorldModel:
    return awake(fresh_model(dynamics, shape))


def fresh_model(dynamics: str, shape: tuple[int, int, int]) -> WorldModel:
    torch.manual_seed(0)  # the Fourier features
    config = WorldModelConfig(
        dynamics=DYNAMICS[dynamics],
        interoception_head=InteroceptionHeadConfig(hidden=4),
        ensemble=EnsembleConfig(members=2, hidden=4),
    )
    return config.build(shape, 2, NUM_SIGNALS)


def make_evaluators(encoder: str) -> nn.Module:
    """An encoder of one image."""
    return awake(ENCODERS[encoder].build({"obs": PIXELS}))


@any_dynamics
def test_imagining_many_steps_is_stepping_many_times(dynamics):
    # in float64: products of all steps at once are rounded otherwise than those of one
    model, state, actions = (
        part.double() for part in (world_model(dynamics), normal(4, 18), normal(4, 1, 5, 2))
    )
    imagined = model.imagine(state, actions).states
    torch.testing.assert_close(imagined[:, 0, 0], state)
    for step in range(5):
        state = model.dynamics(state, actions[:, 0, step])
        torch.testing.assert_close(imagined[:, 0, step + 1], state)


@any_dynamics
def test_an_action_changes_the_future_and_never_the_past(dynamics):
    model, state = world_model(dynamics), normal(1, 18)
    gradient = jacobian(lambda a: model.imagine(state, a).states[0, 0], normal(1, 1, 4, 2))
    gradient = gradient[:, :, 0, 0].abs().amax((1, 3))  # [H + 1 states, H actions]
    caused = torch.arange(5)[:, None] > torch.arange(4)
    assert ((gradient > 0) == caused).all()


@any_dynamics
def test_candidates_are_imagined_independently(dynamics):
    # in doubles: Fourier features amplify differences of rounding between batch sizes
    model, state = world_model(dynamics).double(), normal(3, 18).double()
    actions = normal(3, 4, 5, 2).double()
    together = model.imagine(state, actions).states
    for env in range(3):
        for proposal in range(4):
            only = model.imagine(state[env, None], actions[env, None, proposal, None]).states
            torch.testing.assert_close(together[env, proposal], only[0, 0])


@any_dynamics
@pytest.mark.parametrize("others", [0, 2])
def test_a_closed_loop_rollout_decides_after_every_step_and_disturbs_no_candidate(dynamics, others):
    model, state = world_model(dynamics).double(), normal(3, 18).double()
    given = normal(3, others, 4, 2).double()

    def decide(here: Tensor) -> Tensor:
        return torch.tanh(here[:, :2] - here[:, 2:4])

    found = model.imagine_policy(state, decide, given)
    torch.testing.assert_close(found, stepwise(model.imagine)(state, decide, given))
    assert found.actions.shape == (3, 1 + others, 4, 2)
    assert torch.equal(found.actions[:, 1:], given)
    first, then = found.actions[:, 0, 0], found.actions[:, 0, 1]
    assert not torch.allclose(first, then)


@any_dynamics
def test_an_untrained_residual_model_predicts_no_change(dynamics):
    is_first = fresh_model(dynamics, (2, 3, 3))
    states = is_first.imagine(normal(1, 18), normal(1, 1, 4, 2)).states
    assert torch.equal(states, states[:, :, :1].expand_as(states))


def reached_from(row: int, column: int) -> Tensor:
    """Which places `[7, 7]` of the next state a change in one place of the state alters."""
    dynamics = world_model("map", (2, 7, 7)).dynamics
    state, action = normal(1, 2, 7, 7), normal(1, 2)
    other = state.clone()
    other[..., row, column] += 1
    change = dynamics(other.flatten(1), action) - dynamics(state.flatten(1), action)
    return change.unflatten(1, (2, 7, 7)).abs().amax((0, 1)) > 0


def test_on_a_map_a_change_reaches_its_neighbourhood_in_one_step_and_no_further():
    distance = torch.arange(7).maximum(torch.arange(7)[:, None])  # from the corner (0, 0)
    assert torch.equal(reached_from(0, 0), distance <= 2)


def test_on_a_map_the_dynamics_are_the_same_in_every_place():
    dynamics = world_model("map", (2, 9, 9)).dynamics
    state, action = torch.zeros(1, 2, 9, 9), normal(1, 2)
    state[..., 3:5, 3:5] = normal(1, 2, 2, 2)
    after, elsewhere = (
        dynamics(s.flatten(1), action).unflatten(1, (2, 9, 9))
        for s in (state, state.roll((1, 1), (2, 3)))
    )
    torch.testing.assert_close(elsewhere[..., 3:8, 3:8], after[..., 2:7, 2:7])


@any_encoder
@any_dynamics
def test_any_encoder_goes_with_any_dynamics(encoder, dynamics):
    perception = make_evaluators(encoder)
    model = world_model(dynamics, perception.shape)
    state, actions = perception(picture(), {}), normal(3, 2, 4, 2)
    assert state.shape == (3, prod(perception.shape))
    rollout = model.imagine(state, actions)
    future = rollout.states
    assert future.shape == (3, 2, 5, state.shape[1])
    assert rollout.interoception.shape == (3, 2, 4, NUM_SIGNALS)
    uncertainty = model.ensemble.disagreement(future[:, :, :-1], actions)
    assert uncertainty.shape == (3, 2, 4)
    guessed = model.dynamics.inverse(future[:, :, :-1], future[:, :, 1:])
    assert guessed.shape == (3, 2, 4, 2)
    parts = (future, guessed, rollout.interoception, uncertainty)
    torch.stack([part.square().sum() for part in parts]).sum().backward()
    learnt = [*perception.parameters(), *model.parameters()]
    assert all(parameter.grad.abs().sum() > 0 for parameter in learnt)


@any_dynamics
def test_the_inverse_head_reads_the_action_of_each_pair_of_states(dynamics):
    inverse = world_model(dynamics).dynamics.inverse
    now, after = normal(2, 3, 18, seed=1), normal(2, 3, 18, seed=2)
    torch.testing.assert_close(inverse(now, after)[1, 2], inverse(now[1:, 2], after[1:, 2])[0])


def test_patches_are_a_convolution_over_pixels_from_0_to_1():
    patches = PatchEmbed(2, 4, 5)
    weight = patches.project.weight.unflatten(1, (2, 4, 4))
    observed = nn.functional.conv2d(picture().float() / 255, weight, patches.project.bias, stride=4)
    torch.testing.assert_close(patches(picture()), observed)


@any_encoder
def test_all_pixels_are_read_but_those_beyond_the_last_patch(encoder):
    perception = make_evaluators(encoder).double()
    beyond = encoder == "points"  # its first layer is no patches, but a convolution
    for row, column, observed in ((0, 0, True), (11, 11, True), (12, 0, beyond), (0, 13, beyond)):
        other = picture(1)
        other[0, 1, row, column] ^= 128
        assert torch.equal(perception(other, {}), perception(picture(1), {})) != observed


@any_encoder
def test_images_are_encoded_independently(encoder):
    perception = make_evaluators(encoder)
    torch.testing.assert_close(perception(picture(), {})[1], perception(picture()[1:2], {})[0])


@any_encoder
def test_a_map_keeps_locations_and_a_vector_has_none(encoder):
    shape = ENCODERS[encoder].build({"obs": PIXELS}).shape
    assert shape == ((2, 3, 3) if encoder == "map" else (5, 1, 1))


@pytest.mark.parametrize("encoder", ["vector", "map"])
@pytest.mark.parametrize("shape", [(4,), (3, 8, 3), (2, 2, 2)])
def test_inputs_that_are_no_images_or_too_small_are_refused_by_name(encoder, shape):
    with pytest.raises(ConfigError, match=rf"{str(shape)[1:-1]}.* at least 4 by 4"):
        ENCODERS[encoder].build({"obs": shape})


@pytest.mark.parametrize("encoder", ["vector", "map"])
def test_an_image_encoder_refuses_other_modalities(encoder):
    with pytest.raises(ConfigError, match=r"touch \(7,\).*are no images"):
        ENCODERS[encoder].build({"obs": PIXELS, "touch": (7,)})


@pytest.mark.parametrize("shape", [(), (3, 8, 3), (2, 2, 2), (3, 8, 8, 1)])
def test_inputs_of_no_modality_are_refused_by_name(shape):
    with pytest.raises(ConfigError, match=r"'left' has shape .* at least 4 by 4"):
        ENCODERS["multi_modal"].build({"right": PIXELS, "left": shape})


def sensed(count: int = 3, seed: int = 0) -> dict[str, Tensor]:
    touch, things = normal(count, 7, seed=seed), normal(count, 4, 3, seed=seed)
    return {"sight": picture(count, seed), "touch": touch, "things": things}


def multi_modal() -> nn.Module:
    """An encoder of an image, of seven numbers and of a set of four objects."""
    shapes = {name: tuple(part.shape[1:]) for name, part in sensed().items()}
    return awake(ENCODERS["multi_modal"].build(shapes))


def test_a_set_of_objects_is_encoded_by_shared_weights_each_into_its_own_part_of_the_state():
    perception, here, order = multi_modal(), sensed(), [2, 0, 3, 1]
    state = perception(here, {})
    turned = perception({**here, "things": here["things"][:, order]}, {})
    parts, others = (s[:, -16:].unflatten(1, (4, 4)) for s in (state, turned))
    torch.testing.assert_close(others, parts[:, order])
    for thing in range(4):
        moved = here["things"].clone()
        moved[:, thing] += 1
        change = perception({**here, "things": moved}, {}) - state
        assert change[:, -16:].unflatten(1, (4, 4)).abs().amax((0, 2)).argmax() == thing
        assert not change[:, :-16].any()


def test_each_modality_changes_the_state_and_one_of_weight_0_cannot():
    perception, here = multi_modal(), sensed()
    for name in here:
        other = {**here, name: sensed(seed=1)[name]}
        for gain in (0.0, 0.5, 1.0):
            same = torch.equal(perception(here, {name: gain}), perception(other, {name: gain}))
            assert same == (gain == 0)


def test_a_modality_weight_may_differ_from_step_to_step():
    perception, here, weights = multi_modal(), sensed(), torch.tensor([0.0, 0.5, 1.0])
    together = perception(here, {"touch": weights})
    for projected_step in range(3):
        single = {name: part[projected_step, None] for name, part in here.items()}
        state = perception(single, {"touch": float(weights[projected_step])})
        torch.testing.assert_close(together[projected_step], state[0])


def test_the_online_target_passes_gradients():
    state = normal(3, 4).requires_grad_()
    assert OnlineTargetConfig().build(nn.Linear(4, 4))(normal(3, 4, seed=1), state, {}) is state


class Straight(nn.Linear):
    """Encodes a vector as it is, but for its weights."""

    def forward(self, obs: Observation, weights: ModalityWeights) -> Tensor:
        return super().forward(obs)


def test_the_ema_target_follows_by_its_decay():
    perception = Straight(1, 1, bias=False)
    target = EMATargetConfig(decay=0.9).build(perception)
    target.update()
    start = perception.weight.item()
    nn.init.constant_(perception.weight, start + 1)
    one, observed = torch.ones(1, 1), []
    for _ in range(2):
        target.update()
        observed.append(target(one, perception(one, {}), {}).item() - start)
    assert observed == pytest.approx([0.1, 0.19], abs=1e-6)


def test_the_ema_target_has_no_gradient():
    perception = Straight(4, 4)
    target = EMATargetConfig().build(perception)
    obs = normal(3, 4)
    aim = target(obs, perception(obs, {}), {})
    torch.testing.assert_close(aim, perception(obs, {}))
    (perception(obs, {}) - 2 * aim).square().sum().backward()
    assert perception.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in target.parameters())


@any_encoder
def test_the_weight_of_an_image_goes_by_the_name_of_its_modality(encoder):
    look = awake(ENCODERS[encoder].build({"view": PIXELS}))
    view = {"view": torch.randint(0, 255, (3, *PIXELS), dtype=torch.uint8)}
    assert not torch.allclose(look(view, {"view": 0.0}), look(view, {"view": 1.0}))
