"""The terms of the world model's loss mean what they say; numbers by hand."""

from __future__ import annotations

from dataclasses import asdict
from math import exp, log, sqrt
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ami_agent.training.representation_losses as objectives
from ami_agent.training.jepa import JEPALoss
from ami_agent.training.representation_losses import LossWeights
from modules.memory.short_term import ShortTermMemory
from modules.perception.target_encoder import StopGradientTargetConfig
from modules.types import Trajectory
from modules.world_model.jepa import (
    Ensemble,
    InteroceptionHead,
    NoEnsemble,
    NoInteroception,
    WorldModel,
)
from modules.world_model.latents import Latent


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_variance_is_the_mean_shortfall_of_deviations_below_one():
    features = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.6]])  # variances 2, 0, 0.18
    shortfall = 0 + (1 - sqrt(1e-4)) + (1 - sqrt(0.18 + 1e-4))
    assert objectives.variance(features).item() == pytest.approx(shortfall / 3, abs=1e-6)


def test_variance_pushes_narrow_features_apart_and_leaves_wide_ones_alone():
    features = torch.tensor([[0.0, 0.0], [4.0, 0.4]], requires_grad=True)
    objectives.variance(features).backward()
    assert (features.grad[:, 0] == 0).all()
    assert features.grad[0, 1] > 0 > features.grad[1, 1]  # descent goes the other way


def test_covariance_is_the_off_diagonal_squared_over_the_number_of_features():
    features = torch.tensor([[1.0, 3.0], [-1.0, 1.0]])  # the covariance matrix is all 2
    assert objectives.covariance(features).item() == pytest.approx((2**2 + 2**2) / 2)
    three = torch.tensor([[0.0, 0, 0], [1, 2, 0], [2, 1, 0]])  # variances 1, 1, 0; together 1/2
    assert objectives.covariance(three).item() == pytest.approx(2 * (1 / 2) ** 2 / 3)


def test_covariance_of_decorrelated_features_is_zero_however_large_they_are():
    square = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert objectives.covariance(square * torch.tensor([100.0, 3.0]) + 7).item() == 0


def test_similarity_is_the_mean_squared_step():
    states = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [3.0, 4.0]]])
    assert objectives.temporal_similarity(states).item() == (1 + 0 + 4 + 16) / 4


def test_prediction_and_inverse_are_mean_squared_errors():
    wrong, right = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[4.0, 2.0]]])
    assert objectives.prediction(wrong, right).item() == 9 / 2
    assert objectives.inverse_dynamics(wrong, right).item() == 9 / 2


def test_centering_within_an_episode_removes_constants_and_nothing_else():
    moving, episode = normal(6, 4, 5), normal(2, 1, 1, 5, seed=1)
    shown = (moving.unflatten(0, (2, 3)) + episode).flatten(0, 1)
    left = objectives.center_within_episode(shown, 3)
    torch.testing.assert_close(left, objectives.center_within_episode(moving, 3))
    torch.testing.assert_close(left.diff(dim=1), moving.diff(dim=1))
    torch.testing.assert_close(left.unflatten(0, (2, 3)).mean((1, 2)), torch.zeros(2, 5))


def test_centering_within_an_episode_by_hand():
    states = torch.tensor([[[1.0], [3.0]], [[5.0], [7.0]]])  # two windows
    assert objectives.center_within_episode(states, 2).flatten().tolist() == [-3, -1, 1, 3]
    assert objectives.center_within_episode(states, 1).flatten().tolist() == [-1, 1, -1, 1]


def test_folding_makes_every_location_a_sample_of_its_channels():
    channel = torch.arange(3.0)[:, None, None].expand(3, 2, 4)
    position = torch.arange(8.0).view(2, 4)
    states = (100 * channel + position).flatten().expand(5, 2, -1)  # [B, T, D]
    features = objectives.per_location(states, 3)
    assert features.shape == (5 * 2 * 8, 3)
    assert (features // 100).unique(dim=0).tolist() == [[0, 1, 2]]
    assert (features % 100 == features[:, :1] % 100).all()
    assert features[:8, 0].tolist() == list(range(8))


def test_a_vector_folds_into_one_sample():
    states = normal(5, 2, 3)
    torch.testing.assert_close(objectives.per_location(states, 3), states.flatten(0, 1))


class Line(nn.Module):
    """The dynamics s' = s + a for states that are positions times a scale."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        return state + self.scale * action

    def inverse(self, state: Tensor, next_state: Tensor) -> Tensor:
        return (next_state - state) / max(self.scale, 1e-9)


def model(
    scale: float,
    feeling: InteroceptionHead | NoInteroception | None = None,
    doubt: Ensemble | NoEnsemble | None = None,
) -> WorldModel:
    return WorldModel(
        Line(scale),
        Latent(),
        feeling or NoInteroception(),
        doubt or NoEnsemble(),
        1,
    )


def walked(obs: Tensor, actions: Tensor, interoception: Tensor | None = None) -> Trajectory:
    """Observations `[B, T + 1, O]` along these actions, each in an episode of its own."""
    never = torch.zeros(actions.shape[:2], dtype=torch.bool)
    interoception = torch.zeros(*actions.shape[:2], 1) if interoception is None else interoception
    return Trajectory(obs, actions, interoception, never, torch.arange(len(obs)))


def loss(walk: Trajectory, scale: float, model: WorldModel, **how: Any) -> dict[str, Tensor]:
    """Of an agent that encodes observations times a scale, and whose targets are its states."""
    terms = JEPALoss(
        lambda obs: scale * obs, lambda obs, features: features, ShortTermMemory(), model, **how
    )
    return terms(walk, torch.Generator())


def loss_of_a_walk(scale: float) -> dict[str, Tensor]:
    """Of an agent that encodes positions on a plane, times a scale, and predicts perfectly."""
    actions = 0.1 * normal(64, 4, 2)
    start = normal(64, 1, 2, seed=1)
    obs = torch.cat([start, start + actions.cumsum(1)], 1)
    how = {
        "channels": 2,
        "group_size": 4,
        "left_out": (),
        "prototypes": torch.eye(2),
    }
    return loss(walked(obs, actions), scale, model(scale), **how)


def total(terms: dict[str, Tensor]) -> float:
    return sum(weight * terms[name].item() for name, weight in vars(LossWeights()).items())


def test_every_term_has_a_weight_and_every_weight_a_term():
    assert set(loss_of_a_walk(1.0)) == set(asdict(LossWeights()))


def test_a_perfect_model_has_no_prediction_and_inverse_loss():
    terms = loss_of_a_walk(2.0)
    assert terms["prediction"].item() == pytest.approx(0, abs=1e-9)
    assert terms["inverse_dynamics"].item() == pytest.approx(0, abs=1e-9)


def test_every_step_after_the_first_is_predicted():
    walk = walked(torch.tensor([[[0.0], [1.0], [3.0]]]), torch.zeros(1, 2, 1))
    terms = loss(walk, 1.0, model(1.0), channels=1, group_size=1)
    assert terms["prediction"].item() == (1**2 + 3**2) / 2  # it predicts to stay at 0


def test_with_a_context_futures_of_one_length_are_predicted_from_each_of_its_states():
    walk = walked(torch.tensor([[[0.0], [1.0], [3.0], [7.0]]]), torch.zeros(1, 3, 1))
    terms = loss(walk, 1.0, model(1.0), channels=1, group_size=1, context_steps=1)
    assert terms["prediction"].item() == (1**2 + 3**2 + 2**2 + 6**2) / 4


def test_interoception_is_read_from_the_predicted_states():
    interoception = torch.tensor([[[5.0], [7.0]]])
    walk = walked(torch.tensor([[[0.0], [1.0], [3.0]]]), torch.ones(1, 2, 1), interoception)
    terms = loss(
        walk, 1.0, model(1.0, feeling=InteroceptionHead(nn.Identity(), 1)), channels=1, group_size=1
    )
    assert terms["interoception"].item() == ((5 - 1) ** 2 + (7 - 2) ** 2) / 2  # predicted: 1 and 2


def test_the_interoception_loss_is_in_units_of_each_signal():
    interoception = torch.tensor([[1.0, 100.0], [3.0, 500.0], [5.0, 900.0]])
    feeling = InteroceptionHead(nn.Identity(), 2)
    feeling.adapt(interoception)
    torch.testing.assert_close(feeling(torch.zeros(2)), torch.tensor([3.0, 500.0]))
    missed = interoception + torch.tensor([2.0, 400.0])  # by a standard deviation each
    assert objectives.interoception(missed, interoception, feeling.scale).item() == pytest.approx(1)


def test_every_member_of_an_ensemble_predicts_the_change_of_one_step():
    class Says(nn.Module):
        def __init__(self, change: float) -> None:
            super().__init__()
            self.change = change

        def forward(self, both: Tensor) -> Tensor:
            return 0 * both[..., :1] + self.change

    walk = walked(torch.tensor([[[0.0], [1.0], [3.0]]]), torch.zeros(1, 2, 1))
    doubt = Ensemble([Says(0.0), Says(1.0)])
    terms = loss(walk, 1.0, model(1.0, doubt=doubt), channels=1, group_size=1)
    assert terms["ensemble"].item() == (1**2 + 2**2 + 0**2 + 1**2) / 4
    nothing = loss(walk, 1.0, model(1.0), channels=1, group_size=1)
    assert (nothing["ensemble"].item(), nothing["interoception"].item()) == (0, 0)


def test_a_constant_representation_is_punished():
    collapsed, honest = loss_of_a_walk(0.0), loss_of_a_walk(1.2)
    assert collapsed["prediction"].item() == 0  # nothing is easier to predict
    assert collapsed["variance"].item() == pytest.approx(0.99)
    assert collapsed["variance_within"].item() == pytest.approx(0.99)
    assert total(collapsed) > 2 * total(honest)


def test_unpredictable_signals_have_no_loss():
    read, interoception, scale = (
        normal(4, 2).requires_grad_(),
        normal(4, 2, seed=1),
        torch.tensor([1.0, 2]),
    )
    requested = (
        objectives.interoception(read[:2], interoception[:2], scale) / 2
    )  # half of all there is
    interoception[2:] = torch.nan
    term = objectives.interoception(read, interoception, scale)
    torch.testing.assert_close(term, requested)
    (gradient,) = torch.autograd.grad(term, read)
    assert gradient[:2].all()
    assert not gradient[2:].any()


def test_errors_are_scaled_by_the_change_and_constants_are_not_amplified():
    step = torch.tensor([[2.0, 0.02, 0.0], [-2.0, -0.02, 0.0]])
    target = torch.zeros(2, 3)
    off = torch.tensor([[1.0, 0.01, 0.1], [1.0, 0.01, 0.1]])
    floor = 0.01 * (4 + 0.0004) / 3
    by_hand = (1 / 4 + 0.0001 / floor + 0.01 / floor) / 3
    assert objectives.scaled_prediction(off, target, step).item() == pytest.approx(
        by_hand, rel=1e-4
    )


def test_barlow_twins_by_hand():
    one = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    assert objectives.barlow_twins(one, one).item() == pytest.approx(0, abs=1e-6)
    assert objectives.barlow_twins(5 * one + 3, one).item() == pytest.approx(0, abs=1e-6)
    # of two features that swap places each is like the other and unlike itself
    assert objectives.barlow_twins(one, one.flip(1)).item() == pytest.approx(
        (2 + 0.005 * 2) / 2, rel=1e-3
    )
    assert objectives.barlow_twins(one, 0 * one).item() == pytest.approx(1)  # collapsed


def test_sigreg_is_the_distance_of_characteristic_functions():
    axes = torch.eye(2)
    nothing = objectives.sigreg(torch.zeros(8, 2), axes).item()
    point = torch.linspace(-5, 5, 17)
    target = (-point.square() / 2).exp()
    by_hand = torch.trapezoid((1 - target).square() * target, point).item()
    assert nothing == pytest.approx(by_hand, rel=1e-5)
    many = normal(20_000, 2)
    assert objectives.sigreg(many, axes).item() < 1e-3 < nothing
    for wrong in (3 * many, many + 2, many.abs()):
        assert objectives.sigreg(wrong, axes).item() > 0.05
    sampled = objectives.directions(7, torch.Generator().manual_seed(0))
    torch.testing.assert_close(sampled.norm(dim=1), torch.ones(64))


def test_info_nce_by_hand():
    ways = torch.eye(2)
    right = 1 / 0.1
    by_hand = log(1 + exp(-right))
    assert objectives.info_nce(3 * ways, ways).item() == pytest.approx(by_hand, rel=0.02)
    assert objectives.info_nce(ways.flip(0), ways).item() == pytest.approx(right, rel=1e-3)
    same = torch.ones(2, 2)
    assert objectives.info_nce(same, same).item() == pytest.approx(log(2), rel=1e-4)


def test_margin_by_hand():
    target = torch.tensor([[0.0, 0.0], [0.6, 0.6]])
    off = target + 0.1
    near = 0.01
    differences = (1 - abs(0.1 - 0.6)) ** 2, (1 - abs(0.7 - 0.0)) ** 2
    by_hand = (near + sum(differences) / 2) / 2
    assert objectives.margin(off, target).item() == pytest.approx(by_hand, rel=1e-4)
    assert objectives.margin(10 * target, 10 * target).item() == pytest.approx(0, abs=1e-8)


def test_losses_of_pairs_of_energies_by_hand():
    target = torch.tensor([[0.0, 0.0], [0.6, 0.6]])
    correct = 0.1  # root mean square distances
    incorrect = 0.5, 0.7  # 0.1 from 0.6, and 0.7 from 0
    hinges = [1 + correct - other for other in incorrect]
    assert objectives.hinge(target + 0.1, target).item() == pytest.approx(sum(hinges) / 2)
    squares = [correct**2 + exp(-other) for other in incorrect]
    found = objectives.square_exponential(target + 0.1, target).item()
    assert found == pytest.approx(sum(squares) / 2)
    weak = objectives.square_exponential(target + 0.1, target, push=0.0).item()
    assert weak == pytest.approx(correct**2, rel=1e-4)


def test_losses_of_pairs_of_energies_punish_a_collapse_and_reward_distance():
    collapsed = torch.zeros(4, 3)
    far = 10 * torch.eye(4)
    assert objectives.hinge(collapsed, collapsed).item() == pytest.approx(1)
    assert objectives.hinge(far, far).item() == 0
    assert objectives.square_exponential(collapsed, collapsed).item() == pytest.approx(1, rel=1e-3)
    assert 0 < objectives.square_exponential(far, far).item() < 0.01  # it never ends to push
    same = torch.zeros(4, 3, requires_grad=True)  # where a distance has no gradient
    for loss in (objectives.hinge, objectives.square_exponential):
        (slope,) = torch.autograd.grad(loss(same, same), same)
        assert slope.isfinite().all()


def test_prototypes_by_hand():
    ways = torch.eye(2)
    # each has its own prototype as target; from the mean of both, cosines are +-sqrt(1/2)
    right = log(1 + exp(-(2**0.5) / 0.1))
    found = objectives.prototypes(3 * ways + 7, ways, 2 * ways).item()
    assert found == pytest.approx(right, rel=0.02, abs=1e-7)
    wrong = right + 2**0.5 / 0.1
    assert objectives.prototypes(ways.flip(0), ways, ways).item() == pytest.approx(wrong, rel=1e-3)
    same = ways[:1].expand(2, -1)  # collapsed: both prototypes must be used
    assert objectives.prototypes(same, same, ways).item() == pytest.approx(log(2), rel=1e-3)


def test_sinkhorn_balances_the_prototypes_and_normalises_each_sample():
    random = torch.Generator().manual_seed(0)
    alike = torch.rand(60, 4, generator=random) + torch.tensor([0.5, 0.0, 0.0, 0.0])
    fraction = objectives.sinkhorn(alike, rounds=50)
    torch.testing.assert_close(fraction.sum(1), torch.ones(60))
    torch.testing.assert_close(fraction.sum(0), torch.full((4,), 15.0), atol=0.1, rtol=0)
    assert objectives.sinkhorn(torch.tensor([[-1e9, 0.0]])).isfinite().all()


def test_byol_by_hand():
    ways = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    assert objectives.byol(3 * ways + 7, ways).item() == pytest.approx(0, abs=1e-6)
    assert objectives.byol(-ways, ways).item() == pytest.approx(4)
    assert objectives.byol(ways.roll(1, 0), ways).item() == pytest.approx(2)  # right angles
    assert objectives.byol(0 * ways, ways).item() == pytest.approx(1)  # collapsed


def test_straightness_by_hand():
    straight = torch.tensor([[[0.0, 0.0], [1.0, 1.0], [5.0, 5.0]]])
    corner = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 2.0], [1.0, 1.0]]])
    assert objectives.straightness(straight).item() == pytest.approx(0, abs=1e-6)
    assert objectives.straightness(corner).item() == pytest.approx((1 + 2) / 2)
    assert objectives.straightness(straight[:, :2]).item() == 0


def test_alternative_terms_are_computed_only_where_they_have_a_weight():
    walk = walked(normal(8, 3, 2), normal(8, 2, 2))
    how = {"channels": 2, "group_size": 1}
    requested = loss(
        walk, 1.0, model(1.0), **how, left_out={*objectives.OPTIONAL_TERMS} - {"sigreg"}
    )
    assert set(requested) & set(objectives.OPTIONAL_TERMS) == {"sigreg"}
    whole = loss(
        walk,
        1.0,
        model(1.0),
        **how,
        left_out=(),
        prototypes=torch.eye(2),
    )
    assert set(objectives.OPTIONAL_TERMS) <= set(whole)
    for name, value in requested.items():
        assert value.equal(whole[name]) or name == "sigreg", name


@pytest.mark.parametrize("name", objectives.OPTIONAL_TERMS)
def test_a_term_is_the_function_of_its_name(name, monkeypatch):
    monkeypatch.setattr(objectives, name, lambda *views: torch.tensor(7.0))
    walk = walked(normal(8, 3, 2), normal(8, 2, 2))
    how = {"channels": 2, "group_size": 1, "prototypes": torch.eye(2)}
    found = loss(walk, 1.0, model(1.0), **how, left_out=())
    assert [other for other in objectives.OPTIONAL_TERMS if found[other] == 7] == [name]


def test_a_stop_gradient_target_passes_no_gradient():
    features = torch.ones(2, 3, requires_grad=True)
    assert not StopGradientTargetConfig().build(nn.Identity())(features, features, {}).requires_grad
