"""Several futures of the same actions: their mean, their worst, and the CVaR between."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch import Tensor

from ami_agent import ablation, config_io, recipes
from ami_agent.config import build
from modules.actor.planning import CEMConfig, GradientPlannerConfig, MPPIConfig
from modules.actor.planning.evaluator import RolloutEvaluator
from modules.actor.planning.risk import (
    EntropicRisk,
    EntropicRiskConfig,
    ScenarioCVaR,
    ScenarioCVaRConfig,
    cvar_weights,
    free_energy,
    latin_hypercube,
)
from modules.actor.policy import BoxActions
from modules.configurator import Task
from modules.types import ConfigError, Rollout, TaskContext
from tests.conftest import Stepping, error_line, make_context, small

GUST, RARE = 1.0, 0.25
COUNT = 8


def imagine(state: Tensor, actions: Tensor, chance: Tensor | None = None) -> Rollout:
    """A line; with a probability of `RARE` a step is a gust that throws down by `GUST`."""
    if chance is None:
        gusts = torch.zeros_like(actions)
    else:
        gusts = -GUST * (chance < RARE).to(actions).repeat(actions.shape[1], 1, 1)
        actions = actions.repeat_interleave(len(chance), 1)
    path = state[:, None, None] + (0.2 * actions + gusts).cumsum(2)
    states = torch.cat([state[:, None, None].expand(-1, path.shape[1], -1, -1), path], 2)
    return Rollout(states, actions, actions[..., :0], actions[..., :0])


def evaluate(rollout: Rollout, context: TaskContext) -> dict[str, Tensor]:
    """Two costs: height is expensive, and below -1 there is a pit."""
    path = rollout.states[:, :, 1:, 0]
    return {
        "height": (path + 1).relu().mean(-1),
        "pit": 10 * torch.sigmoid(20 * (-1 - path)).mean(-1),
    }


def make_evaluator(count: int = COUNT, beta: float = 0.0) -> RolloutEvaluator:
    """CVaR; or, where `beta` is not 0, the entropic risk."""
    risk = EntropicRisk(count, 1, beta) if beta else ScenarioCVaR(count, 1)
    return RolloutEvaluator(imagine, None, evaluate, BoxActions(), 1, risk)  # type: ignore[arg-type]


def context(tail: float, horizon: int = 3) -> TaskContext:
    task = make_context(torch.zeros(2, 1), cvar_alpha=tail, horizon=horizon)
    return make_evaluator().with_noise(task, torch.Generator().manual_seed(0))


STATE = torch.tensor([[0.0], [0.5]])


def test_cvar_weights_by_hand():
    energy = torch.tensor([[1.0, 4.0, 2.0, 3.0]])
    assert cvar_weights(energy, 1.0).tolist() == [[0.25, 0.25, 0.25, 0.25]]
    assert cvar_weights(energy, 0.5).tolist() == [[0, 0.5, 0, 0.5]]
    assert cvar_weights(energy, 0.0).tolist() == [[0, 1, 0, 0]]
    assert cvar_weights(energy, 0.375)[0].tolist() == pytest.approx([0, 2 / 3, 0, 1 / 3])


def test_an_energy_is_that_of_its_futures_and_the_sum_of_its_terms():
    actions = torch.randn(2, 3, 3, 1).clamp(-1, 1)
    futures = imagine(STATE, actions, context(1.0).noise)
    each = sum(evaluate(futures, context(1.0)).values()).unflatten(1, (3, COUNT))
    for tail, energy in ((1.0, each.mean(-1)), (0.0, each.amax(-1))):
        evaluated = make_evaluator().evaluate(STATE, actions, context(tail))
        assert torch.allclose(evaluated.energy, energy)
        assert torch.allclose(sum(evaluated.terms.values()), energy)
        assert torch.equal(evaluated.scenario_states, futures.states)
    middle = make_evaluator().evaluate(STATE, actions, context(0.25)).energy
    assert torch.allclose(middle, each.topk(2, -1).values.mean(-1))


def test_the_displayed_future_is_a_sample_of_about_that_energy():
    actions = torch.randn(2, 3, 3, 1).clamp(-1, 1)
    evaluated = make_evaluator().evaluate(STATE, actions, context(0.0))
    assert evaluated.rollout.states.shape == (2, 3, 4, 1)
    assert torch.equal(evaluated.rollout.actions, actions)
    shown = sum(evaluate(evaluated.rollout, context(0.0)).values())
    assert torch.allclose(shown, evaluated.energy)


def test_all_candidates_are_compared_with_the_same_noise():
    actions = torch.zeros(2, 3, 3, 1)
    energy = make_evaluator().evaluate(STATE, actions, context(1.0)).energy
    assert torch.equal(energy[:, 0], energy[:, 1])
    assert torch.equal(make_evaluator().evaluate(STATE, actions, context(1.0)).energy, energy)


def test_the_next_plan_draws_other_noise_and_a_seed_repeats_it():
    def drawn(seed: int) -> list[Tensor]:
        rng = torch.Generator().manual_seed(seed)
        return [ScenarioCVaR(COUNT, 1).sample(3, rng) for _ in range(3)]

    first = drawn(1)
    assert len({float(noise.sum()) for noise in first}) == len(first)
    assert all(torch.equal(a, b) for a, b in zip(drawn(1), first, strict=True))
    assert not torch.equal(drawn(2)[0], first[0])


@pytest.mark.parametrize("how", ["act", "perceive"])
def test_every_action_has_other_noise_and_an_episode_repeats_it(how):
    config = small(recipes.recipe("windy-rooms"))
    env = config.eval_env.build(2)
    agent = build(config, env.spec)
    controller = agent.controller(tensors=True)
    obs, info = env.reset(0)
    env.close()

    def chances() -> list[Tensor]:
        controller.set_task(Task(goal=env.goal(info), mode="plan"), 3)
        drawn = []
        for _ in range(2):
            before = controller.episode.noise_rng.clone_state()
            getattr(controller, how)(obs)  # the first half of act draws it
            drawn.append(agent.evaluator.with_noise(controller.context, before).noise)
        return drawn

    first, second = chances()
    assert not torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(chances(), (first, second), strict=True))


def test_a_latin_hypercube_draws_every_interval_once():
    drawn = latin_hypercube(8, 5, 2, torch.Generator().manual_seed(0))
    assert drawn.shape == (8, 5, 2)
    part = (8 * drawn).long()
    assert torch.equal(part.sort(0).values, torch.arange(8)[:, None, None].expand_as(part))
    assert len({tuple(order) for order in part[..., 0].T.tolist()}) > 1


def test_a_latin_hypercube_stays_below_one_whatever_the_rounding(monkeypatch):
    most = 1 - 2**-24
    monkeypatch.setattr(torch, "rand", lambda shape, generator: torch.full(shape, most))
    assert latin_hypercube(16, 1, 1, torch.Generator()).max() == most


def test_a_deterministic_model_needs_one_future():
    assert ScenarioCVaRConfig().build(0) is None
    assert isinstance(ScenarioCVaRConfig().build(2), ScenarioCVaR)
    with pytest.raises(ConfigError, match="num_scenarios is 0"):
        ScenarioCVaRConfig(num_scenarios=0)


@pytest.mark.parametrize("planner", [GradientPlannerConfig, CEMConfig, MPPIConfig])
def test_a_lower_cvar_level_keeps_further_from_the_pit(planner):
    """Being low is cheap, but a gust throws a low agent into the pit."""

    def height(tail: float) -> Tensor:
        evaluator = make_evaluator()
        made = Stepping(planner(horizon=3, iterations=12).build(evaluator, evaluator.no_candidates))
        plan = made(STATE, context(tail))
        calm = imagine(STATE, plan.actions[:, None]).states[:, 0, 1:, 0]
        assert plan.candidate_states.shape[1] % COUNT == 0
        return calm.mean()

    blind = RolloutEvaluator(imagine, None, evaluate, BoxActions(), 1)  # type: ignore[arg-type]
    careless = Stepping(planner(horizon=3, iterations=12).build(blind, blind.no_candidates))
    zero_weights = careless(STATE, context(1.0)._replace(noise=None)).states[:, 1:, 0].mean()
    assert zero_weights < height(1.0) < height(0.0) + 1e-3


ENERGIES = torch.tensor([[1.0, 4.0, 2.5], [-3.0, 7.0, 7.0]], dtype=torch.float64)


def test_terms_are_weighted_between_the_mean_and_the_gibbs_distribution():
    worst = torch.full((1, 1, 2), 0.5)
    for energies in ([1.0, 1.0 + 1e-7], [1.0, 1.0], [1.0, torch.inf]):
        weights = EntropicRisk(2, 1, 1.0).combine(torch.tensor([[energies]]), worst)[1]
        assert weights.sum() == pytest.approx(1)
        assert weights.min() >= 0
        assert weights[0, 0, 0] >= 0.5 - 1e-6  # the better future counts more


def test_a_free_energy_by_hand():
    two = torch.tensor([0.0, log(3)], dtype=torch.float64)
    assert float(free_energy(two, 1.0)) == pytest.approx(-log((1 + 1 / 3) / 2))  # a soft minimum
    assert float(free_energy(two, -1.0)) == pytest.approx(log((1 + 3) / 2))  # a soft maximum
    weights = torch.tensor([0.75, 0.25], dtype=torch.float64)
    assert float(free_energy(two, -1.0, weights)) == pytest.approx(log(0.75 + 3 * 0.25))


def test_a_free_energy_lies_between_its_limits_the_extreme_and_the_expectation():
    for extreme, sign in ((ENERGIES.amin(-1), 1), (ENERGIES.amax(-1), -1)):
        cold, warm = free_energy(ENERGIES, sign * 1e8), free_energy(ENERGIES, sign * 1e-8)
        torch.testing.assert_close(cold, extreme, atol=1e-6, rtol=0)
        torch.testing.assert_close(warm, ENERGIES.mean(-1), atol=1e-6, rtol=0)
    betas = [-100.0, -3.0, -0.5, -1e-3, 1e-3, 0.5, 3.0, 100.0]
    values = torch.stack([free_energy(ENERGIES, beta) for beta in betas])
    assert (values.diff(dim=0) < 0).all()  # the larger beta, the more optimistic
    assert (free_energy(ENERGIES + 1e6, 0.5) - values[5] - 1e6).abs().max() < 1e-6


@pytest.mark.parametrize("beta", [-3.0, -1e-7, 0.5])
def test_the_gradient_of_a_free_energy_is_the_gibbs_distribution(beta):
    energies = ENERGIES.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda e: free_energy(e, beta), energies)
    (slope,) = torch.autograd.grad(free_energy(energies, beta).sum(), energies)
    torch.testing.assert_close(slope, (-beta * ENERGIES).softmax(-1))


def test_futures_without_weight_have_no_part_in_a_free_energy():
    weights = torch.tensor([0.0, 0.5, 0.5], dtype=torch.float64)
    for beta in (-2.0, 2.0, 1e8):
        energies = ENERGIES.clone().requires_grad_()
        found = free_energy(energies, beta, weights)
        torch.testing.assert_close(found, free_energy(ENERGIES[:, 1:], beta))
        (slope,) = torch.autograd.grad(found.sum(), energies)
        assert slope.isfinite().all()
        assert (slope[:, 0] == 0).all()


@pytest.mark.parametrize("beta", [0.0, 1e-10, -1e10, float("inf"), float("nan")])
def test_an_inverse_temperature_without_a_free_energy_is_refused(beta):
    for use in (lambda: free_energy(ENERGIES, beta), lambda: EntropicRiskConfig(beta=beta)):
        with pytest.raises(ConfigError, match=r"^beta is .*; it must be from") as error:
            use()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("beta", [-2.0, 0.3])
@pytest.mark.parametrize("tail", [1.0, 0.5])
def test_an_entropic_energy_is_the_free_energy_of_the_worst_futures_and_the_sum_of_its_terms(
    beta, tail
):
    actions = torch.randn(2, 3, 3, 1).clamp(-1, 1)
    futures = imagine(STATE, actions, context(1.0).noise)
    each = sum(evaluate(futures, context(1.0)).values()).unflatten(1, (3, COUNT))
    worst = each.topk(round(tail * COUNT), -1).values
    by_hand = -(-beta * worst).exp().mean(-1).log() / beta
    evaluated = make_evaluator(beta=beta).evaluate(STATE, actions, context(tail))
    torch.testing.assert_close(evaluated.energy, by_hand, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        sum(evaluated.terms.values()), evaluated.energy, atol=1e-5, rtol=1e-5
    )


def test_an_entropic_risk_has_the_limits_of_cvar():
    actions = torch.randn(2, 3, 3, 1).clamp(-1, 1)

    def energy(tail: float, beta: float = 0.0) -> Tensor:
        return make_evaluator(beta=beta).evaluate(STATE, actions, context(tail)).energy

    torch.testing.assert_close(energy(1.0, 1e-6), energy(1.0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(energy(1.0, -1e6), energy(0.0), atol=1e-4, rtol=1e-4)
    assert (energy(1.0, 1.0) < energy(1.0)).all()
    assert (energy(1.0) < energy(1.0, -1.0)).all()


def test_a_gradient_flows_through_an_entropic_risk_to_the_actions():
    evaluator = make_evaluator(beta=-2.0)
    raw = torch.zeros(2, 3, 3, 1)
    evaluated, slope = evaluator.slope_fn(context(1.0))(STATE, raw)
    higher = evaluator.evaluate(
        STATE, evaluator.action_space.squash(raw - 1e-2 * slope), context(1.0)
    )
    assert slope.abs().amin() > 0
    assert (higher.energy < evaluated.energy).all()


@pytest.mark.parametrize("planner", [GradientPlannerConfig, CEMConfig, MPPIConfig])
def test_pessimism_keeps_further_from_the_pit_than_optimism(planner):
    def height(beta: float) -> Tensor:
        evaluator = make_evaluator(beta=beta)
        made = Stepping(planner(horizon=3, iterations=12).build(evaluator, evaluator.no_candidates))
        plan = made(STATE, context(1.0))
        return imagine(STATE, plan.actions[:, None]).states[:, 0, 1:, 0].mean()

    assert height(3.0) < height(-3.0)


def test_entropic_risk_is_an_axis_of_ablations_and_a_flag():
    base = recipes.recipe("windy-rooms")
    config = ablation.swap(base, "actor.risk=EntropicRisk")
    assert config.actor.risk == EntropicRiskConfig()
    assert ablation.swap(base, "risk=EntropicRisk") == config
    env = small(config).eval_env.build(1)
    assert build(small(config), env.spec).evaluator.risk_model == EntropicRisk(16, 4, -1.0)
    env.close()
    levels = ablation.swap(recipes.recipe("maze-levels"), "subgoals.scenarios=EntropicRisk")
    assert levels.actor.subgoals.scenarios == EntropicRiskConfig()
    assert EntropicRiskConfig().build(0) is None


def test_the_command_line_refuses_a_temperature_without_a_free_energy(capsys, tmp_path):
    flags = ["--risk", "EntropicRisk", "--risk.beta", "0"]
    line = error_line(capsys, "train", "windy-rooms", "--out", tmp_path / "run", *flags)
    assert "--risk.beta is 0" in line
    assert not (tmp_path / "run").exists()


def test_settings_of_earlier_versions_name_no_class_of_risk():
    config = recipes.recipe("windy-rooms")
    data = config_io.to_json(config)
    del data["actor"]["risk"]["_type"]
    assert config_io.from_json(data, "here") == config
