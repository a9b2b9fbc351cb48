"""What can't be known: it is inferred from what followed, costs what it tells, and comes as often
in imagination as in life."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from ami_agent import ablate, boxes, build, recipes
from ami_agent.losses import unroll_loss
from modules.dynamics import VectorDynamics
from modules.latents import DiscreteLatent, GaussianLatent, NoLatent, SparseLatent
from modules.latents.continuous import Normal, nats
from modules.types import Trajectory
from modules.world_model import Certain, Level, Numb, WorldModel
from tests.conftest import small

KINDS = {
    "gaussian": GaussianLatent.Config(size=2),
    "sparse": SparseLatent.Config(size=2),
    "discrete": DiscreteLatent.Config(cases=4),
}
EVERY = pytest.mark.parametrize("kind", KINDS)
SHARE = 0.25
"""How often a gust comes in the world of these tests."""


def made(kind: str) -> WorldModel:
    """Fresh; what was inferred last, as far as there can be any, was anything."""
    torch.manual_seed(0)
    latent = KINDS[kind].build(1, 1) if kind in KINDS else NoLatent()
    if isinstance(latent, SparseLatent):
        nn.init.normal_(latent.remembered)
    dynamics = VectorDynamics.Config(hidden=32).build((1, 1, 1), 1, latent.size)
    return WorldModel([Level(dynamics, latent)], Numb(), Certain(), 1)


def life(count: int, random: torch.Generator) -> Trajectory:
    """A body on a line, which goes where it wants; but now and then a gust throws it up by 2."""
    actions = torch.rand(count, 3, 1, generator=random) * 2 - 1
    gusts = 2.0 * (torch.rand(count, 3, 1, generator=random) < SHARE)
    start = torch.randn(count, 1, 1, generator=random)
    obs = torch.cat([start, start + (0.5 * actions + gusts).cumsum(1)], 1)
    nothing = torch.zeros(count, 3, 1)
    return Trajectory(obs, actions, nothing, nothing[..., 0].bool(), torch.arange(count))


@cache
def learnt(kind: str, information: float = 0.03) -> WorldModel:
    model, random = made(kind), torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(300):
        terms = unroll_loss(model, life(64, random), random)
        loss = terms["prediction"] + information * terms["information"] + terms["prior"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval().requires_grad_(False)


def thrown(model: WorldModel, count: int = 512) -> Tensor:
    """How far gusts throw who rests, in so many futures."""
    chance = torch.rand(count, 1, model.level(0).latent.chances, generator=torch.Generator())
    futures = model.imagine(torch.zeros(1, 1), torch.zeros(1, 1, 1, 1), chance)
    return futures.states[0, :, 1, 0]


def test_without_a_latent_variable_the_mean_future_is_imagined_which_never_comes():
    (there,) = made("none").imagine(torch.zeros(1, 1), torch.zeros(1, 1, 1, 1)).states[:, 0, 1]
    assert there.shape == (1,)
    far = thrown(learnt("none"), 4)
    assert far.std() == 0  # whatever chance there is
    assert float(far[0]) == pytest.approx(2 * SHARE, abs=0.15)


@EVERY
def test_futures_are_like_those_that_come(kind):
    far = thrown(learnt(kind))
    gust, calm = (far > 1.5).float().mean(), (far.abs() < 0.5).float().mean()
    assert float(gust) == pytest.approx(SHARE, abs=0.1)
    assert float(calm) == pytest.approx(1 - SHARE, abs=0.15)


@pytest.mark.parametrize("kind", ["gaussian", "sparse"])
def test_what_followed_is_explained_and_the_less_the_dearer_it_is(kind):
    told = {}
    for price in (0.01, 10.0):
        model = learnt(kind, price)
        terms = unroll_loss(model, life(2000, torch.Generator()), torch.Generator())
        told[price] = float(terms["information"]), float(terms["prediction"])
    assert told[0.01][0] > told[10.0][0] + 0.1
    assert told[10.0][0] < 0.1
    assert told[0.01][1] < 0.5 * told[10.0][1]


def test_cases_are_told_apart_by_what_they_lead_to():
    model = learnt("discrete")
    walk = life(500, torch.Generator())
    states, latent = walk.states, model.level(0).latent
    found = latent.infer(
        states[:, :-1], walk.actions, states[:, 1:], torch.rand(500, 3, 1), model.level(0).dynamics
    )
    case = found.acting[..., 1:].argmax(-1)
    gust = (states[:, 1:] - states[:, :-1] - 0.5 * walk.actions)[..., 0] > 1
    assert not set(case[gust].tolist()) & set(case[~gust].tolist())
    # what a gust or none tells: its entropy, if that comes as often as p knows
    assert float(found.information) == pytest.approx(0.56, abs=0.1)


@EVERY
def test_the_states_are_not_drawn_to_make_it_easy(kind):
    latent = KINDS[kind].build(3, 2)
    before, after = (torch.randn(5, 3, requires_grad=True) for _ in range(2))
    chance = torch.rand(5, latent.chances)
    dynamics = VectorDynamics.Config().build((3, 1, 1), 2, latent.size)
    found = latent.infer(before, torch.randn(5, 2), after, chance, dynamics)
    (found.acting.sum() + found.information + found.prior).backward()
    assert before.grad is None
    assert after.grad is None
    learns = latent.prior if kind == "discrete" else latent.posterior
    assert all(p.grad is not None for p in learns.parameters())


@EVERY
def test_the_same_chance_is_the_same_future_and_the_likeliest_needs_none(kind):
    model = made(kind)
    nn.init.normal_(model.level(0).dynamics.change.weight)
    state, actions = torch.randn(3, 1), torch.randn(3, 2, 4, 1)
    chance = torch.rand(5, 4, model.level(0).latent.chances)
    one, two = (model.imagine(state, actions, chance) for _ in range(2))
    assert one.states.shape == (3, 10, 5, 1)
    assert one.latents.shape == (3, 10, 4, model.level(0).latent.size)
    assert torch.equal(one.states, two.states)
    assert torch.equal(one.actions, actions.repeat_interleave(5, 1))
    assert len(one.states[0, :5, -1].unique()) > 1
    alone = model.imagine(state[1:2], actions[1:2, 1:], chance[3:4])
    assert torch.allclose(alone.states[0, 0], one.states[1, 8], atol=1e-5)
    assert model.imagine(state, actions).states.shape == (3, 2, 5, 1)


@EVERY
def test_who_decides_as_he_goes_decides_in_every_future(kind):
    model = made(kind)
    nn.init.normal_(model.level(0).dynamics.change.weight)
    state, others = torch.randn(3, 1), torch.randn(3, 2, 4, 1)
    chance = torch.rand(5, 4, model.level(0).latent.chances)
    found = model.pursue(state, lambda states: -states, others, chance)
    assert found.states.shape == (3, 15, 5, 1)
    assert torch.equal(found.actions[:, :5], -found.states[:, :5, :-1])
    told = model.imagine(state, others, chance)
    assert torch.allclose(found.states[:, 5:], told.states, atol=1e-6)


def test_nats_between_normal_numbers():
    q = Normal(torch.tensor([[1.0]]), torch.tensor([[2.0]]))
    p = Normal(torch.tensor([[0.0]]), torch.tensor([[1.0]]))
    # (4 + 1 - 1) / 2 - ln 2
    assert float(nats(q, p)) == pytest.approx(2 - 0.6931, abs=1e-3)
    assert float(nats(q, q)) == 0


def test_cases_come_as_often_as_they_should():
    latent = DiscreteLatent.Config(cases=4).build(1, 1)
    for layer in latent.prior[:-1]:
        layer.requires_grad_(False)
    shares = torch.tensor([0.1, 0.2, 0.3, 0.4])
    nn.init.zeros_(latent.prior[-1].weight)
    latent.prior[-1].bias.data = shares.log()
    chance = (torch.arange(1000) / 1000)[:, None]
    drawn = latent.draw(torch.zeros(1000, 1), torch.zeros(1000, 1), chance)[:, 1:]
    assert torch.allclose(drawn.mean(0), shares, atol=2e-3)
    likeliest = latent.likeliest(torch.zeros(1, 1), torch.zeros(1, 1))
    assert likeliest.tolist() == [[0, 0, 0, 0, 1]]


@EVERY
def test_any_recipe_may_have_one(kind):
    config = small(recipes.two_rooms())
    latent = {"gaussian": "GaussianLatent", "sparse": "SparseLatent", "discrete": "DiscreteLatent"}
    box = getattr(boxes, latent[kind]).Config()
    model = replace(config.world_model, latent=box)
    config = replace(config, world_model=model)
    world = config.world.build(1)
    agent = build(config, world.spec)
    world.close()
    plain = ablate.without(config, "latent")
    assert plain.world_model.latent == NoLatent.Config()
    assert agent.world_model.level(0).latent.size > 0
    (told,) = agent.world_model.imagine(torch.zeros(1, 32), torch.zeros(1, 1, 2, 2)).latents
    assert told.shape == (1, 2, agent.world_model.level(0).latent.size)
