"""Latent variables: inferred from the outcome, priced by their information, and as frequent in
imagination as in the environment."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import ami_agent.components as boxes
from ami_agent import ablation, recipes
from ami_agent.config import build
from ami_agent.training.jepa import unroll_loss
from modules.types import Trajectory
from modules.world_model.dynamics import MLPDynamicsConfig
from modules.world_model.jepa import NoEnsemble, NoInteroception, WorldModel
from modules.world_model.latents import (
    CategoricalLatentConfig,
    GaussianLatentConfig,
    Latent,
    Normal,
    SparseLatent,
    SparseLatentConfig,
    kl_divergence,
)
from tests.conftest import small

KINDS = {
    "gaussian": GaussianLatentConfig(size=2),
    "sparse": SparseLatentConfig(size=2),
    "discrete": CategoricalLatentConfig(num_categories=4),
}
EVERY = pytest.mark.parametrize("kind", KINDS)
SHARE = 0.25
"""How often a gust occurs in the dynamics of these tests."""


def made(kind: str) -> WorldModel:
    """New; the last inferred values, where there are any, are arbitrary."""
    torch.manual_seed(0)
    latent = KINDS[kind].build(1, 1) if kind in KINDS else Latent()
    if isinstance(latent, SparseLatent):
        nn.init.normal_(latent.memory_bank)
    dynamics = MLPDynamicsConfig(hidden=32).build((1, 1, 1), 1, latent.size)
    return WorldModel(dynamics, latent, NoInteroception(), NoEnsemble(), 1)


def collect_data(count: int, random: torch.Generator) -> Trajectory:
    """A point on a line, which moves by its action; but now and then a gust throws it up by 2."""
    actions = torch.rand(count, 3, 1, generator=random) * 2 - 1
    gusts = 2.0 * (torch.rand(count, 3, 1, generator=random) < SHARE)
    start = torch.randn(count, 1, 1, generator=random)
    obs = torch.cat([start, start + (0.5 * actions + gusts).cumsum(1)], 1)
    nothing = torch.zeros(count, 3, 1)
    return Trajectory(obs, actions, nothing, nothing[..., 0].bool(), torch.arange(count))


@cache
def trained_agent(kind: str, information: float = 0.03) -> WorldModel:
    model, random = made(kind), torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(300):
        terms = unroll_loss(model, collect_data(64, random), random)
        loss = terms["prediction"] + information * terms["kl"] + terms["prior_nll"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval().requires_grad_(False)


def thrown(model: WorldModel, count: int = 512) -> Tensor:
    """How far gusts throw an agent at rest, in so many futures."""
    chance = torch.rand(count, 1, model.latent.noise_dim, generator=torch.Generator())
    futures = model.imagine(torch.zeros(1, 1), torch.zeros(1, 1, 1, 1), chance)
    return futures.states[0, :, 1, 0]


def test_without_a_latent_variable_the_mean_future_is_imagined_which_never_occurs():
    (there,) = made("none").imagine(torch.zeros(1, 1), torch.zeros(1, 1, 1, 1)).states[:, 0, 1]
    assert there.shape == (1,)
    far = thrown(trained_agent("none"), 4)
    assert far.std() == 0  # whatever the noise
    assert float(far[0]) == pytest.approx(2 * SHARE, abs=0.15)


@EVERY
def test_sampled_futures_are_distributed_like_real_ones(kind):
    far = thrown(trained_agent(kind))
    gust, calm = (far > 1.5).float().mean(), (far.abs() < 0.5).float().mean()
    assert float(gust) == pytest.approx(SHARE, abs=0.1)
    assert float(calm) == pytest.approx(1 - SHARE, abs=0.15)


@pytest.mark.parametrize("kind", ["gaussian", "sparse"])
def test_the_latent_variable_explains_outcomes_and_less_at_a_higher_price(kind):
    output = {}
    for price in (0.01, 10.0):
        model = trained_agent(kind, price)
        terms = unroll_loss(model, collect_data(2000, torch.Generator()), torch.Generator())
        output[price] = float(terms["kl"]), float(terms["prediction"])
    assert output[0.01][0] > output[10.0][0] + 0.1
    assert output[10.0][0] < 0.1
    assert output[0.01][1] < 0.5 * output[10.0][1]


def test_categories_are_distinguished_by_their_outcomes():
    model = trained_agent("discrete")
    walk = collect_data(500, torch.Generator())
    states, latent = walk.states, model.latent
    found = latent.posterior(
        states[:, :-1], walk.actions, states[:, 1:], torch.rand(500, 3, 1), model.dynamics
    )
    case = found.action_latent[..., 1:].argmax(-1)
    gust = (states[:, 1:] - states[:, :-1] - 0.5 * walk.actions)[..., 0] > 1
    assert not set(case[gust].tolist()) & set(case[~gust].tolist())
    # the information of a gust or none: its entropy, if p is calibrated
    assert float(found.kl) == pytest.approx(0.56, abs=0.1)


@EVERY
def test_the_posterior_passes_no_gradient_to_the_states(kind):
    latent = KINDS[kind].build(3, 2)
    before, after = (torch.randn(5, 3, requires_grad=True) for _ in range(2))
    chance = torch.rand(5, latent.noise_dim)
    dynamics = MLPDynamicsConfig().build((3, 1, 1), 2, latent.size)
    found = latent.posterior(before, torch.randn(5, 2), after, chance, dynamics)
    (found.action_latent.sum() + found.kl + found.prior_nll).backward()
    assert before.grad is None
    assert after.grad is None
    learns = latent.prior_net if kind == "discrete" else latent.posterior_net
    assert all(p.grad is not None for p in learns.parameters())


@EVERY
def test_the_same_noise_gives_the_same_future_and_the_mode_needs_none(kind):
    model = made(kind)
    nn.init.normal_(model.dynamics.delta_head.weight)
    state, actions = torch.randn(3, 1), torch.randn(3, 2, 4, 1)
    chance = torch.rand(5, 4, model.latent.noise_dim)
    one, two = (model.imagine(state, actions, chance) for _ in range(2))
    assert one.states.shape == (3, 10, 5, 1)
    assert one.latents.shape == (3, 10, 4, model.latent.size)
    assert torch.equal(one.states, two.states)
    assert torch.equal(one.actions, actions.repeat_interleave(5, 1))
    assert len(one.states[0, :5, -1].unique()) > 1
    single = model.imagine(state[1:2], actions[1:2, 1:], chance[3:4])
    assert torch.allclose(single.states[0, 0], one.states[1, 8], atol=1e-5)
    assert model.imagine(state, actions).states.shape == (3, 2, 5, 1)


@EVERY
def test_a_closed_loop_policy_acts_in_every_sampled_future(kind):
    model = made(kind)
    nn.init.normal_(model.dynamics.delta_head.weight)
    state, others = torch.randn(3, 1), torch.randn(3, 2, 4, 1)
    chance = torch.rand(5, 4, model.latent.noise_dim)
    found = model.imagine_policy(state, lambda states: -states, others, chance)
    assert found.states.shape == (3, 15, 5, 1)
    assert torch.equal(found.actions[:, :5], -found.states[:, :5, :-1])
    output = model.imagine(state, others, chance)
    assert torch.allclose(found.states[:, 5:], output.states, atol=1e-6)


def test_kl_between_normal_distributions_in_nats():
    q = Normal(torch.tensor([[1.0]]), torch.tensor([[2.0]]))
    p = Normal(torch.tensor([[0.0]]), torch.tensor([[1.0]]))
    # (4 + 1 - 1) / 2 - ln 2
    assert float(kl_divergence(q, p)) == pytest.approx(2 - 0.6931, abs=1e-3)
    assert float(kl_divergence(q, q)) == 0


def test_categories_are_sampled_at_their_probabilities():
    latent = CategoricalLatentConfig(num_categories=4).build(1, 1)
    for layer in latent.prior_net[:-1]:
        layer.requires_grad_(False)
    fractions = torch.tensor([0.1, 0.2, 0.3, 0.4])
    nn.init.zeros_(latent.prior_net[-1].weight)
    latent.prior_net[-1].bias.data = fractions.log()
    chance = (torch.arange(1000) / 1000)[:, None]
    sampled = latent.sample(torch.zeros(1000, 1), torch.zeros(1000, 1), chance)[:, 1:]
    assert torch.allclose(sampled.mean(0), fractions, atol=2e-3)
    likeliest = latent.mode(torch.zeros(1, 1), torch.zeros(1, 1))
    assert likeliest.tolist() == [[0, 0, 0, 0, 1]]


@EVERY
def test_any_recipe_may_have_a_latent_variable(kind):
    config = small(recipes.two_rooms())
    latent = {
        "gaussian": "GaussianLatentConfig",
        "sparse": "SparseLatentConfig",
        "discrete": "CategoricalLatentConfig",
    }
    box = getattr(boxes, latent[kind])()
    model = replace(config.world_model, latent=box)
    config = replace(config, world_model=model)
    env = config.env.build(1)
    agent = build(config, env.spec)
    env.close()
    plain = ablation.without(config, "latent")
    assert plain.world_model.latent is None
    assert agent.world_model.latent.size > 0
    (output,) = agent.world_model.imagine(torch.zeros(1, 32), torch.zeros(1, 1, 2, 2)).latents
    assert output.shape == (1, 2, agent.world_model.latent.size)
