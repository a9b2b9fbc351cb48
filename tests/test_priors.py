"""What is said of a representation, measured against representations that are known."""

from __future__ import annotations

from dataclasses import replace
from math import log

import pytest
import torch
from torch import Tensor

from ami_agent import measures, recipes
from ami_agent.build import build
from ami_agent.life import WorldConfig
from ami_agent.priors import STEPS, TOLD, WORLDS, card, foreseen, strolls
from modules.types import Rollout


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_what_is_explained_is_a_share_of_the_variance():
    true = torch.tensor([[0.0, 5.0], [2.0, 7.0]])
    assert measures.explained(true, true) == 1
    assert measures.explained(true.mean(0).expand(2, -1), true) == pytest.approx(0)
    half = torch.tensor([[0.5, 5.0], [1.5, 7.0]])
    assert measures.explained(half, true) == pytest.approx((0.75 + 1) / 2)


def test_the_nearest_tell_what_a_line_cannot():
    angle = 6.28 * uniform(3000, 1)
    states = torch.cat([angle.sin(), angle.cos()], 1)
    folded = angle.sin() * angle.cos()
    read = measures.nearest(states[:2500], folded[:2500], states[2500:])
    assert measures.explained(read, folded[2500:]) > 0.99


def test_slowness_by_hand():
    path = torch.tensor([0.0, 1.0, 0.0, 1.0])[:, None, None].expand(-1, 2, 1)
    step, variance = 1.0, 2 / 7  # of eight numbers, half of them 1
    assert measures.slowness(path) == pytest.approx(step / (2 * variance))
    noise = uniform(40, 50, 3)
    assert measures.slowness(noise) == pytest.approx(1, abs=0.05)
    assert measures.slowness(noise[:1].expand(40, -1, -1)) == 0


def test_states_that_are_places_are_smooth_and_shuffled_ones_are_not():
    places = uniform(500, 2)
    assert measures.smoothness(7 * places, places * torch.tensor([1.0, 1.0])) > 0.99
    assert abs(measures.smoothness(places[torch.randperm(500)], places)) < 0.1
    assert measures.smoothness(0 * places, places) == 0


def test_sparsity_by_hand():
    alike = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    alone = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert measures.sparsity(alike) == pytest.approx(0, abs=1e-6)
    assert measures.sparsity(alone) == pytest.approx(1, abs=1e-6)
    assert measures.sparsity(alike[:, :1]) == 0


def test_purity_by_hand():
    assert measures.purity(torch.eye(3)) == pytest.approx(1)
    assert measures.purity(torch.ones(4, 3)) == pytest.approx(0, abs=1e-6)
    mixed = torch.tensor([[3.0, 1.0], [0.0, 4.0]])
    entropy = -(0.75 * log(0.75) + 0.25 * log(0.25)) / log(2)
    assert measures.purity(mixed) == pytest.approx((1 - entropy + 1) / 2)
    assert measures.purity(torch.ones(4, 1)) == 1


def test_the_gap_is_wide_where_one_number_tells_and_none_where_two_do():
    factors = uniform(8000, 2)
    assert measures.gap(factors.flip(1), factors) > 0.95
    assert measures.gap(factors.repeat(1, 2), factors) == pytest.approx(0, abs=1e-6)
    assert measures.gap(uniform(8000, 2, seed=1), factors) < 0.05
    assert measures.gap(factors[:, :1], factors[:, :1]) == pytest.approx(1)


def test_what_is_the_same_tells_nothing_and_a_switch_is_told_by_whoever_knows_it():
    cue = (uniform(3000, 1) > 0.5).float()
    noise, dead = uniform(3000, 2, seed=1), torch.ones(3000, 3)
    assert measures.gap(torch.cat([noise, dead], 1), cue) < 0.01
    assert measures.gap(torch.cat([cue, noise, dead], 1), cue) > 0.98


def test_what_is_foreseen_exactly_is_0_and_what_is_expected_to_rest_1():
    start, actions = uniform(6, 2), uniform(6, STEPS, 2, seed=1)
    states = torch.cat([start[:, None], start[:, None] + actions.cumsum(1)], 1)

    class Mind:
        device = torch.device("cpu")
        moved = 1.0

        @property
        def world_model(self):
            return self

        def imagine(self, state: Tensor, acts: Tensor) -> Rollout:
            moved = state[:, None, None] + self.moved * acts.cumsum(2)
            path = torch.cat([state[:, None, None], moved], 2)
            return Rollout(path, acts, acts[..., :0], acts[..., :0])

    by_moment, mind = states.transpose(0, 1).flatten(0, 1), Mind()
    assert foreseen(mind, by_moment, actions) == pytest.approx([0] * STEPS, abs=1e-5)
    mind.moved = 0.0
    assert foreseen(mind, by_moment, actions) == pytest.approx([1] * STEPS)


def test_walks_in_which_an_episode_ends_are_left_out():
    walked = strolls(WorldConfig(id="CartPole-v1"), 0)
    kept = len(walked.actions)
    assert 0 < kept < WORLDS
    assert len(walked.obs) == (STEPS + 1) * kept
    first = walked.obs[:kept, 2].abs()
    assert first.max() <= 0.05  # all begin upright
    last = walked.obs[-kept:, 2].abs()
    assert last.max() <= 0.21  # and none has fallen


def test_a_card_tells_an_agent_from_one_that_has_learnt_nothing(tiny):
    with_world = replace(tiny, evaluation=replace(tiny.evaluation, options={"budget": 30}))
    world = with_world.evaluation.build(1)
    agent = build(with_world, world.spec, seed=3, device="cpu", worlds=1, capacity=8).eval()
    found = card(agent, with_world, 0)
    assert {prior.name for prior in found.priors} == set(TOLD)
    assert found.names == ("dot x", "dot y")  # walls that never move are nothing to be known
    marks = {prior.name: prior.marks for prior in found.priors}
    assert all(list(mark) == ["agent", "untrained", "seen"] for mark in marks.values())
    assert 0.3 < marks["linear"]["seen"] < marks["neighbours"]["seen"] <= 1
    assert len(found.ahead) == STEPS
    blind = recipes.gym(WorldConfig(id="Pendulum-v1"))
    world = blind.evaluation.build(1)
    agent = build(blind, world.spec, seed=3, device="cpu", worlds=1, capacity=8).eval()
    found = card(agent, blind, 0)
    assert [prior.name for prior in found.priors] == ["slowness", "sparsity", "dimensions"]
    assert found.names == ()
