"""What must hold on an accelerator; skipped where there is none."""

from __future__ import annotations

import pytest
import torch

import ami_agent as ami
from ami_agent.train import train
from modules.configurator import Task

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device here"),
]


@pytest.mark.parametrize("mode", ["react", "plan"])
def test_a_mind_on_a_gpu_acts_as_on_a_cpu(tiny, tmp_path, mode):
    train(tiny, out=tmp_path / "run", device="cuda")
    world = tiny.evaluation.build(5)
    obs, info = world.reset(0)
    goal = world.tensor(info["goal"])
    actions = []
    for device in ("cpu", "cuda"):
        agent = ami.load(tmp_path / "run", device)
        agent.configure(Task(goal=goal.to(device), mode=mode))
        actions.append(agent.act(obs.to(device)).action.cpu())
    torch.testing.assert_close(*actions, atol=1e-2, rtol=0)


def test_evaluation_runs_on_a_gpu(tiny, tmp_path):
    agent = train(tiny, out=tmp_path / "run", device="cuda")
    assert ami.evaluate(agent, tiny.evaluation, episodes=2)["device"].startswith("cuda")
