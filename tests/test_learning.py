"""Whole trainings, with figures. They take minutes; marked slow."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import ami_agent as ami
from ami_agent.config import override
from ami_agent.training.base import SGDStageRun
from ami_agent.training.optim import OptimConfig, clip_gradients
from modules.types import ConfigError


@pytest.mark.slow
def test_the_default_recipe_learns_to_go_through_the_door(tmp_path):
    """Half of the recipe's updates; the full recipe's figures are in docs/results/two-rooms.md."""
    config = ami.recipes.two_rooms()
    short = replace(
        config.stages["train_jepa"].optim, steps=config.stages["train_jepa"].optim.steps // 2
    )
    config = override(config, {"stages.train_jepa.optim": short})
    agent = ami.train(config, out=tmp_path / "run", seed=0)
    plan = ami.evaluate(agent, config.eval_env, mode="plan", episodes=50)
    react = ami.evaluate(agent, config.eval_env, mode="react", episodes=50)
    assert plan["baselines"]["random"]["final_success"]["mean"] < 0.1
    assert plan["baselines"]["oracle"]["final_success"]["mean"] == 1
    assert plan["final_success"]["mean"] > 0.7
    assert react["final_success"]["mean"] > 0.6


@pytest.mark.long
def test_a_hierarchy_reaches_goals_that_a_flat_plan_does_not(tmp_path):
    """With a critic trained for ten seconds; the full figures are in docs/results/mazes.md."""
    config = ami.recipes.maze()
    shorter = replace(config.stages["train_jepa"].optim, steps=1500)
    briefly = replace(config.stages["train_goal_critic"].optim, steps=800)
    config = override(
        config,
        {
            "stages.train_jepa.optim": shorter,
            "stages.distill_policy": None,
            "stages.train_goal_critic.optim": briefly,
            "actor.policy_proposal": None,
        },
    )
    agent = ami.train(config, out=tmp_path / "run", seed=0)

    def reached() -> float:
        found = ami.evaluate(agent, config.eval_env, task="long", episodes=40)
        assert found["baselines"]["random"]["final_success"]["mean"] < 0.1
        return float(found["final_success"]["mean"])

    led = reached()
    agent.subgoals = None
    assert led > 0.6
    assert led > reached() + 0.15


def test_an_evaluation_during_training_changes_no_weight():
    module = nn.Sequential(nn.Linear(2, 1), nn.Dropout(0.5))
    output = []

    def loss(random: torch.Generator) -> dict[str, torch.Tensor]:
        output.append(module.training)
        return {"all": module(torch.ones(1, 2)).square().mean()}

    learner = SGDStageRun(module, loss, OptimConfig(steps=2, batch_size=1), weights={}, seed=0)
    module.eval()
    learner.update()
    assert output == [True]


@pytest.mark.parametrize("longest", [0.5, 100.0])
def test_a_long_gradient_is_shortened_as_torch_does_it(longest):
    weights = [nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(4))]
    unused = nn.Parameter(torch.ones(1))
    found = []
    for clip in (clip_gradients, nn.utils.clip_grad_norm_):
        for scale, weight in enumerate(weights, 1):
            weight.grad = torch.full_like(weight, float(scale))
        norm = clip([*weights, unused], longest)
        found.append([norm, *(weight.grad for weight in weights)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_term_without_weight_trains_nothing():
    module = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)])

    def loss(random: torch.Generator) -> dict[str, torch.Tensor]:
        learnt, logged = (layer(torch.ones(1, 2)).square().mean() for layer in module)
        return {"learnt": learnt, "logged": torch.inf * logged}

    before = module[1].weight.clone()
    learner = SGDStageRun(
        module, loss, OptimConfig(steps=2, batch_size=1), weights={"logged": 0}, seed=0
    )
    metrics = learner.update()
    assert metrics["loss"].isfinite()
    assert not metrics["logged"].isfinite()
    assert module[1].weight.equal(before)
    assert module[0].weight.grad.abs().sum() > 0


def test_the_gradient_norm_can_not_be_clipped_to_zero():
    with pytest.raises(ConfigError, match="grad_clip_norm is 0; it must be from 1e-06 to"):
        OptimConfig(steps=1, batch_size=1, grad_clip_norm=0)
    with pytest.raises(ConfigError, match="lr is nan"):
        OptimConfig(steps=1, batch_size=1, lr=float("nan"))


def test_weights_that_take_no_gradient_are_not_trained_without_a_word():
    module = nn.Linear(1, 1).requires_grad_(False)
    with pytest.raises(ConfigError, match=r"nothing to train.* agent\.requires_grad_\(\)"):
        SGDStageRun(module, dict, OptimConfig(steps=2, batch_size=1), seed=0)
