"""Compiled functions: the numbers of the functions themselves, one compilation for each shape."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

import ami_agent as ami
from ami_agent.storage import run_dir
from modules import compiled
from modules.actor.planning import CEMConfig
from modules.compiled import MAX_GRAPHS, Compiled, Keyed
from modules.types import ConfigError, EvaluatedRollouts, Rollout
from tests.conftest import error_line

SHIPPED = Path(__file__).parents[1] / "runs" / "reference" / "two-rooms"


def as_traced(module, tensors):
    """In place of machine code: the traced operations themselves, one by one."""
    return lambda inputs: module(*inputs)


@pytest.fixture
def uncompiled(monkeypatch):
    """Functions are traced, and their operations are not compiled, which takes a minute."""
    monkeypatch.setattr(compiled, "ahead_of_time", as_traced)


def act_repeatedly(agent: ami.Agent, steps: int, num_envs: int = 1) -> list[ami.Plan]:
    with closing(run_dir.settings_of(SHIPPED).env.build(num_envs)) as env:
        obs, info = env.reset(seed=0)
        controller = agent.controller(num_envs, ami.Task(goal=env.goal(info)), tensors=True)
        plans = []
        for _ in range(steps):
            plans.append(controller.act(obs))
            obs = env.step(obs, plans[-1].action).transition.next_obs
    return plans


def check_same(agent: ami.Agent, steps: int, num_envs: int) -> None:
    expected = act_repeatedly(ami.load(SHIPPED), steps, num_envs)
    for plan, eager in zip(act_repeatedly(agent, steps, num_envs), expected, strict=True):
        torch.testing.assert_close(plan.action, eager.action, rtol=0, atol=1e-4)
        torch.testing.assert_close(plan.energy, eager.energy, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(plan.states, eager.states, rtol=0, atol=1e-3)
        assert plan.candidate_states.shape == eager.candidate_states.shape
        assert plan.terms.keys() == eager.terms.keys()
        assert plan.upper_plans.shape == eager.upper_plans.shape


@pytest.mark.long
def test_a_compiled_agent_acts_as_the_agent_does_and_compiles_once():
    agent = ami.load(SHIPPED, compile=True)
    check_same(agent, 20, 1)
    before = counters["stats"]["unique_graphs"], number_of_graphs(agent)
    with torch._dynamo.config.patch(error_on_recompile=True):
        act_repeatedly(agent, 5)
    assert (counters["stats"]["unique_graphs"], number_of_graphs(agent)) == before
    assert before[1] == 3  # cold and warm starts alike


def number_of_graphs(agent: ami.Agent) -> int:
    descent = agent.planner.compiled
    return sum(len(part.graphs) for part in (descent.start, descent.step, descent.finish))


def test_traced_plans_are_those_of_the_agent_and_read_weights_that_change(uncompiled):
    agent, eager = ami.load(SHIPPED, compile=True), ami.load(SHIPPED)
    check_same(agent, 4, 2)
    before = act_repeatedly(agent, 1, 2)[0].actions
    for changed in (agent, eager):
        changed.world_model.dynamics.hidden_layer.weight.mul_(0.5)
    after = act_repeatedly(agent, 1, 2)[0].actions
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, act_repeatedly(eager, 1, 2)[0].actions, rtol=0, atol=1e-4)
    assert number_of_graphs(agent) == 3  # cold and warm starts alike


def test_callbacks_are_called_after_every_iteration(uncompiled):
    agent, seen = ami.load(SHIPPED, compile=True), []
    agent.evaluator.callbacks.append(seen.append)
    act_repeatedly(agent, 1)
    assert len(seen) == 8 + 1
    assert number_of_graphs(agent) == 0


def twice(rollout: Rollout, factor: float) -> EvaluatedRollouts:
    states = factor * rollout.states
    moved = rollout._replace(states=states, actions=rollout.actions.sin())
    return EvaluatedRollouts(moved, {"far": states.square().sum()}, states.mean(), states)


def test_structures_and_constants_go_in_and_out(uncompiled):
    function = Compiled(twice, "twice")
    rollout = Rollout(*(torch.randn(2, 3, generator=torch.Generator().manual_seed(0)),) * 4)
    for factor in (2.0, 3.0):
        found, expected = function(Keyed(rollout), factor), twice(rollout, factor)
        torch.testing.assert_close(found, expected)
        assert type(found) is EvaluatedRollouts
        assert found.scenario_states is found.rollout.states
        torch.testing.assert_close(function(rollout, factor), expected)
    assert len(function.graphs) == 2


def test_functions_of_too_many_shapes_are_called_as_they_are(uncompiled, caplog):
    function = Compiled(lambda values: values + 1, "plus one")
    with caplog.at_level(logging.INFO):
        for size in range(1, MAX_GRAPHS + 3):
            assert function(torch.ones(size)).tolist() == [2.0] * size
    messages = [record.getMessage() for record in caplog.records]
    assert sum("compiling plus one" in message for message in messages) == MAX_GRAPHS
    assert messages[-1] == f"plus one is compiled for {MAX_GRAPHS} shapes, and not for more"
    assert sum(graph is not None for graph in function.graphs.values()) == MAX_GRAPHS


def test_machine_code_of_a_function_gives_its_numbers():
    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))

    def function(values: Tensor) -> Tensor:
        return torch.addmm(torch.ones(4), values, weight).relu()

    values = torch.eye(4)
    fast = Compiled(function, "a layer")
    torch.testing.assert_close(fast(values), function(values))
    weight.mul_(2)
    torch.testing.assert_close(fast(values.t()), function(values))
    assert len(fast.graphs) == 1


def test_a_function_with_branches_on_numbers_is_refused_in_one_line(uncompiled):
    function = Compiled(lambda values: values if values.sum() > 0 else -values, "a branch")
    with pytest.raises(ConfigError, match=r"a branch can't be compiled, leave --compile out") as e:
        function(torch.ones(2))
    assert "\n" not in str(e.value)


def test_other_planners_are_refused_in_one_line():
    config = run_dir.settings_of(SHIPPED)
    config = replace(config, actor=replace(config.actor, planner=CEMConfig()))
    with pytest.raises(ConfigError, match=r"a CEM can't be compiled, only a GradientPlanner"):
        ami.load(SHIPPED, config=config, compile=True)


def test_without_a_compiler_one_line_says_so(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    message = error_line(capsys, "eval", SHIPPED, "--compile")
    assert "compilation needs a C++ compiler" in message
    assert "--compile out" in message
    monkeypatch.setenv("CXX", "no-such-compiler")
    flags = ("planning-speed", "--compile")
    assert "'no-such-compiler' is not found" in error_line(capsys, "bench", *flags)
