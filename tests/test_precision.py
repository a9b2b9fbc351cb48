"""The networks of losses compute in bfloat16 where a run asks for it; nothing else does."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import ami_agent.cli.main as cli
from ami_agent import recipes
from ami_agent.storage import checkpoint, run_dir
from ami_agent.train import train
from ami_agent.training import precision
from ami_agent.training.base import SGDStageRun
from ami_agent.training.critics import LagrangeMultiplier, quasimetric_loss
from modules.by_hand.caches import DerivedFromWeights
from modules.cost.goal_critic import QuasimetricConfig
from modules.types import ConfigError
from tests.conftest import error_line, small
from tests.test_train import Killed, KilledAt, same_weights


class InLoss:
    """Notes the types of linear layers' outputs, in losses and everywhere else."""

    def __init__(self, monkeypatch) -> None:
        self.within, self.types = False, {True: set(), False: set()}
        update, forward = SGDStageRun.update, nn.Linear.forward

        def noted_update(run):
            loss = run.loss

            def noted_loss(generator):
                self.within = True
                try:
                    return loss(generator)
                finally:
                    self.within = False

            run.loss = noted_loss
            try:
                return update(run)
            finally:
                run.loss = loss

        def noted_forward(layer, given):
            output = forward(layer, given)
            self.types[self.within].add(output.dtype)
            return output

        monkeypatch.setattr(SGDStageRun, "update", noted_update)
        monkeypatch.setattr(nn.Linear, "forward", noted_forward)


@pytest.mark.parametrize(
    "name",
    [
        "two-rooms",
        "maze",
        "maze-random",
        "maze-levels",
        "cue-corridor",
        "windy-rooms",
        "forage",
        "gym",
    ],
)
def test_losses_alone_are_bf16_and_weights_and_moments_are_float32(name, tmp_path, monkeypatch):
    types = InLoss(monkeypatch).types
    config = small(recipes.recipe(name), steps=2)
    agent = train(config, out=tmp_path / "run", precision="bf16", save_every=0)
    assert torch.bfloat16 in types[True]
    assert types[False] == {torch.float32}
    assert {p.dtype for p in agent.parameters()} == {torch.float32}
    saved = [checkpoint.load(one)[0] for one in checkpoint.checkpoints(tmp_path / "run")]
    found = {tensor.dtype for tensors in saved for tensor in tensors.values()}
    assert torch.float32 in found
    assert torch.bfloat16 not in found


def test_a_loss_in_bf16_is_that_in_float32_but_for_rounding():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, 1))
    given = torch.randn(256, 4)
    found = {}
    for name in ("float32", "bf16"):
        with precision.losses_in(name):
            terms = precision.in_precision(
                lambda generator: {"square": net(given).square().mean()},
                torch.Generator(), torch.device("cpu"),
            )  # fmt: skip
        net.zero_grad()
        terms["square"].backward()
        found[name] = terms["square"].item(), net[0].weight.grad.clone()
        assert terms["square"].dtype == net[0].weight.grad.dtype == torch.float32
    assert found["bf16"][0] == pytest.approx(found["float32"][0], rel=0.02)
    assert found["bf16"][0] != found["float32"][0]
    torch.testing.assert_close(found["bf16"][1], found["float32"][1], rtol=0.1, atol=2e-3)


def test_distances_of_the_goal_critic_are_exact():
    torch.manual_seed(0)
    distance, multiplier = QuasimetricConfig().build((8, 1, 1)), LagrangeMultiplier()
    state = torch.randn(64, 8)
    found = [
        precision.in_precision(
            lambda generator: quasimetric_loss(
                distance, multiplier, state, state + 0.1, max_distance=30
            ),
            torch.Generator(), torch.device("cpu"),
        )
        for _ in each_precision()
    ]  # fmt: skip
    assert found[0] == found[1]


def each_precision():
    for name in ("float32", "bf16"):
        with precision.losses_in(name):
            yield name


def test_what_is_computed_by_hand_stays_out_of_autocast():
    kept, weight = DerivedFromWeights(), torch.ones(2)
    assert kept.get([weight], lambda: "constants") == "constants"
    with torch.autocast("cpu", torch.bfloat16):
        assert kept.get([weight], lambda: "constants") is None
    assert kept.get([weight], lambda: "constants") == "constants"


def test_a_run_that_is_resumed_keeps_its_precision(tiny, tmp_path):
    whole = train(tiny, out=tmp_path / "whole", precision="bf16")
    with pytest.raises(Killed):
        train(
            tiny, out=tmp_path / "cut", precision="bf16", logger=KilledAt("train_jepa"),
            save_every=0,
        )  # fmt: skip
    with pytest.raises(ConfigError, match="--precision is bf16, not float32"):
        train(tiny, out=tmp_path / "cut", precision="float32", resume=True)
    resumed = train(tiny, out=tmp_path / "cut", resume=True)
    assert same_weights(whole, resumed)
    assert json.loads((tmp_path / "cut" / "manifest.json").read_text())["precision"] == "bf16"
    exact = train(tiny, out=tmp_path / "exact")
    assert not same_weights(exact, resumed)
    assert json.loads((tmp_path / "exact" / "manifest.json").read_text())["precision"] == "float32"


def test_the_precision_of_the_flag_is_that_of_the_run(tiny, tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(cli, "recipe", lambda name: tiny)
    monkeypatch.setattr(cli, "train", lambda *_, **to: found.append(to["precision"]) or 1 / 0)
    for flags in ([], ["--precision", "bf16"]):
        with pytest.raises(ZeroDivisionError):
            cli.main(["train", "two-rooms", "--out", str(tmp_path / "run"), *flags])
    assert found == [None, "bf16"]


@pytest.mark.parametrize("value", ["fp16", "", 16, ["bf16"]])
def test_an_unknown_precision_is_refused(tiny, tmp_path, value):
    with pytest.raises(ConfigError, match="it must be float32 or bf16"):
        train(tiny, out=tmp_path / "run", precision=value)
    manifest = {"seed": 0, "seconds": {}, "precision": value}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=r"manifest.json: precision is .* float32 or bf16"):
        run_dir.manifest_of(tmp_path)


def test_a_device_without_bf16_is_refused_before_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(precision, "_has_bf16", lambda kind: False)
    said = error_line(
        capsys, "train", "two-rooms", "--precision", "bf16", "--device", "cpu",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert "--precision bf16: the device cpu does not compute in bfloat16; use float32" in said
    assert not (tmp_path / "run").exists()


def test_a_gpu_that_emulates_bf16_counts_as_one_without(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert not precision._has_bf16("cuda")
    assert not precision._has_bf16("meta")  # PyTorch has no autocast for it
    assert precision._has_bf16("cpu")


def test_another_thread_trains_in_a_precision_of_its_own():
    layer, generator, device = nn.Linear(4, 4), torch.Generator(), torch.device("cpu")

    def type_in_loss() -> torch.dtype:
        types = []
        precision.in_precision(
            lambda _: types.append(layer(torch.ones(1, 4)).dtype) or {}, generator, device
        )
        return types[0]

    with precision.losses_in("bf16"), ThreadPoolExecutor(1) as other:
        assert type_in_loss() == torch.bfloat16
        assert other.submit(type_in_loss).result() == torch.float32
