"""What must hold on an accelerator; skipped where there is none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch._dynamo

import ami_agent as ami
from ami_agent import HOME, recipes
from ami_agent.evaluation.evaluate import evaluate_modes
from ami_agent.storage import run_dir
from ami_agent.train import train
from modules.configurator import Task
from tests.conftest import OWN_RECIPES, small

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device here"),
]


@pytest.mark.parametrize("mode", ["react", "plan"])
def test_an_agent_on_a_gpu_acts_as_on_a_cpu(tiny, tmp_path, mode):
    train(tiny, out=tmp_path / "run", device="cuda")
    env = tiny.eval_env.build(5)
    obs, info = env.reset(0)
    goal = env.tensor(info["goal"])
    actions = []
    for device in ("cpu", "cuda"):
        agent = ami.load(tmp_path / "run", device)
        controller = agent.controller(tensors=True)
        controller.set_task(Task(goal=goal.to(device), mode=mode))
        actions.append(controller.act(obs.to(device)).action.cpu())
    torch.testing.assert_close(*actions, atol=1e-2, rtol=0)


def test_evaluation_runs_on_a_gpu(tiny, tmp_path):
    agent = train(tiny, out=tmp_path / "run", device="cuda")
    assert ami.evaluate(agent, tiny.eval_env, episodes=2)["device"].startswith("cuda")


@pytest.mark.parametrize("name", OWN_RECIPES)
def test_every_recipe_trains_resumes_and_acts_on_a_gpu(name, tmp_path):
    config, run = small(recipes.recipe(name)), tmp_path / "run"
    agent = train(config, out=run, device="cuda", save_every=0)
    assert {p.device.type for p in agent.parameters()} == {"cuda"}
    again = train(config, out=run, device="cuda", resume=True)
    for n, tensor in run_dir.weights(agent).items():
        assert torch.equal(tensor, run_dir.weights(again)[n]), n
    ours = config.eval_env.id.startswith("ami/")
    brief = (
        {"options": {**config.eval_env.options, "max_episode_steps": 5}}
        if ours
        else {"max_episode_steps": 5}
    )
    short = replace(config.eval_env, **brief)
    for found in evaluate_modes(agent, short, episodes=2, modes=tuple(agent.actors)).values():
        assert found["device"].startswith("cuda")


def test_compiled_plans_are_cuda_graphs_with_the_same_numbers():
    shipped = HOME / "runs" / "reference" / "two-rooms"
    env = run_dir.settings_of(shipped).env.build(1, "cuda")
    obs, info = env.reset(0)
    plans = []
    for compile in (False, True):
        agent = ami.load(shipped, "cuda", compile=compile)
        controller = agent.controller(1, Task(goal=env.goal(info)), tensors=True)
        plans.append([controller.act(obs) for _ in range(6)])
    for eager, compiled in zip(*plans, strict=True):
        torch.testing.assert_close(compiled.actions, eager.actions, rtol=0, atol=1e-2)
    with torch._dynamo.config.patch(error_on_recompile=True):
        controller.act(obs)
