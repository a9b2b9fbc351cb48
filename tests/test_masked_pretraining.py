"""Masked pretraining: which patches are hidden, what is predicted of them, and what learns."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import ami_agent.training.representation_losses as losses
from ami_agent import recipes
from ami_agent.ablation import removable, without
from ami_agent.cli.config_flags import choose_components
from ami_agent.components import (
    EMATargetConfig,
    ImageEncoderConfig,
    KeypointEncoderConfig,
    MaskedPredictorConfig,
    MultiModalEncoderConfig,
    OnlineTargetConfig,
    PatchTransformerEncoderConfig,
    SpatialEncoderConfig,
    StopGradientTargetConfig,
)
from ami_agent.config import Config, build, override
from ami_agent.train import train
from ami_agent.training import PretrainMasked
from ami_agent.training.masks import MaskConfig, Masks
from ami_agent.training.optim import OptimConfig
from ami_agent.training.pretrain import MaskedImageLoss, MaskedLossWeights, MaskedRun
from ami_agent.validate import check_config
from modules.nets import sincos_positions
from modules.perception.image import hide_patches, pixel_mask
from modules.perception.masked_predictor import FlowHead, warp
from modules.perception.target_encoder import EMATarget
from modules.types import BadSetting, ConfigError
from tests.conftest import error_line, small

GRIDS = [(4, 4), (7, 7), (8, 8), (3, 12), (13, 13), (2, 2)]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, generator=rng(seed), dtype=torch.uint8)


@pytest.mark.parametrize("grid", GRIDS[:-1])
def test_targets_are_rectangles_of_the_scale_and_none_of_their_patches_is_in_the_context(grid):
    config, generator, count = MaskConfig(), rng(), grid[0] * grid[1]
    config.check(grid)
    for _ in range(40):
        masks = config.sample(grid, 32, generator)
        assert masks.context.shape[1] >= 1
        assert (masks.context.diff(dim=1) > 0).all()  # in order, each once
        in_targets = torch.zeros(32, count).scatter_(1, masks.targets.flatten(1), 1.0)
        assert in_targets.gather(1, masks.context).sum() == 0
        size = masks.targets.shape[2]
        assert 1 <= size <= 0.2 * count
        rows, columns = masks.targets // grid[1], masks.targets % grid[1]
        height, width = (part.amax(2) - part.amin(2) + 1 for part in (rows, columns))
        assert (height * width == size).all()
        assert (masks.targets.sort(2).values.diff(dim=2) > 0).all()
        assert (rows < grid[0]).all()


def test_blocks_have_every_size_of_their_range_and_lie_anywhere():
    config, generator = MaskConfig(), rng()
    found = [config.sample((8, 8), 16, generator) for _ in range(200)]
    assert {masks.targets.shape[2] for masks in found} == {8, 9, 12}
    assert len(torch.cat([masks.targets.flatten() for masks in found]).unique()) == 64
    assert len(torch.cat([masks.context.flatten() for masks in found]).unique()) == 64
    hidden = 1 - torch.tensor([masks.context.shape[1] / 64 for masks in found])
    assert 0.5 < hidden.mean() < 0.9


def test_the_context_is_what_the_targets_leave_of_its_own_block():
    config = MaskConfig(num_targets=1, target_scale=(0.01, 0.02), context_scale=(0.25, 0.25))
    masks = config.sample((8, 8), 64, rng())  # a block of 4 by 4, and a target of one patch
    assert masks.context.shape[1] in (15, 16)
    rows, columns = masks.context // 8, masks.context % 8
    for part in (rows, columns):
        assert (part.amax(1) - part.amin(1) <= 3).all()


def test_where_targets_cover_a_context_block_other_patches_are_shown():
    config = MaskConfig(num_targets=1, target_scale=(0.5, 0.5), context_scale=(0.02, 0.02))
    masks = config.sample((8, 8), 64, rng())  # a context block is one patch
    assert masks.context.shape == (64, 1)
    assert not (masks.targets[:, 0] == masks.context).any()


@pytest.mark.parametrize(
    ("config", "grid", "message"),
    [
        (MaskConfig(target_scale=(0.1, 0.15)), (2, 2), "a target would be less than one"),
        (MaskConfig(num_targets=6), (8, 8), "could hide all of them; fewer targets or a smaller"),
        (MaskConfig(num_targets=1, target_scale=(1.0, 1.0)), (8, 8), "could hide all of them"),
    ],
)
def test_masks_of_no_patch_or_of_all_are_refused(config, grid, message):
    with pytest.raises(ConfigError, match=message):
        config.check(grid)


@pytest.mark.parametrize("scale", [(0.3, 0.2), (0.0, 0.2), (0.2,), (0.1, 0.2, 0.3)])
def test_a_range_is_two_numbers_in_order(scale):
    with pytest.raises(BadSetting, match="two numbers above 0, the smaller one first"):
        MaskConfig(target_scale=scale)


def test_hidden_pixels_are_those_of_patches_that_are_not_shown_and_beyond_the_last():
    image = images(1, 2, 7, 7) // 2 + 1
    hidden = hide_patches(image, torch.tensor([[1]]), (2, 2), 3, torch.tensor([0.0, 255.0]))
    assert torch.equal(hidden[:, :, :3, 3:6], image[:, :, :3, 3:6])
    expected = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None].expand(2, 7, 7).clone()
    expected[:, :3, 3:6] = image[0, :, :3, 3:6]
    assert torch.equal(hidden[0], expected)
    # a cell of two patches of 2 pixels, of which the last is only one
    assert pixel_mask(torch.tensor([[1]]), (1, 2), 4, (4, 6)).sum() == 4 * 2


def test_positions_differ_and_neighbours_are_more_alike_than_others():
    positions = sincos_positions(32, 3, 5)
    assert positions.shape == (15, 32)
    assert positions[0].unique().tolist() == [0, 1]  # sines and cosines of 0
    distance = torch.cdist(positions, positions)
    assert (distance + torch.eye(15) > 0.1).all()
    assert distance[0, 1] < distance[0, 2] < distance[0, 4]


ENCODERS = {
    "transformer": PatchTransformerEncoderConfig(width=16, heads=2, depth=1, state_dim=6),
    "map transformer": PatchTransformerEncoderConfig(width=16, heads=2, depth=1, pool=False),
    "spatial": SpatialEncoderConfig(channels=3),
    "image": ImageEncoderConfig(patch=2, state_dim=5),
}


def encoder(name: str) -> nn.Module:
    torch.manual_seed(0)
    return ENCODERS[name].build({"obs": (2, 16, 16)})


@pytest.mark.parametrize("name", ENCODERS)
def test_what_the_context_shows_depends_on_no_hidden_pixel(name):
    image = encoder(name).maskable_images()[""]
    assert image.grid == (4, 4)
    assert image.side == 4
    before, shown = images(3, 2, 16, 16), torch.tensor([[0, 1, 6], [2, 3, 15], [8, 9, 10]])
    visible = pixel_mask(shown, (4, 4), 4, (16, 16))
    after = torch.where(visible, before, images(3, 2, 16, 16, seed=1))
    one, other = (image.encode_context(part, shown) for part in (before, after))
    assert one.shape == (3, 1 if image.has_vector_state else 3, image.context_dim)
    assert torch.equal(one, other)
    changed = torch.where(visible, images(3, 2, 16, 16, seed=1), before)
    assert not torch.allclose(image.encode_context(changed, shown), one)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_image_without_hidden_patches_has_the_features_and_the_state_of_the_encoder(name):
    perception = encoder(name)
    image, obs = perception.maskable_images()[""], images(3, 2, 16, 16)
    patches, state = image.encode_patches(obs), perception(obs, {})
    assert patches.shape == (3, 16, image.patch_dim)
    context = image.encode_context(obs, torch.arange(16).expand(3, -1))
    expected = {
        "transformer": lambda: perception.head(patches.mean(1)),
        "map transformer": lambda: perception.head(patches).transpose(1, 2).flatten(1),
        "spatial": lambda: patches.transpose(1, 2).flatten(1),
        "image": lambda: context[:, 0],
    }[name]()
    torch.testing.assert_close(state, expected)
    if not image.has_vector_state:
        torch.testing.assert_close(context, patches)


def test_of_several_modalities_the_images_are_masked_with_the_lowest_value_of_each_channel():
    shapes = {"joints": (3,), "depth": (1, 16, 16)}
    perception = MultiModalEncoderConfig(patch=2).build(shapes)
    obs = {"joints": torch.randn(8, 3), "depth": 5 + torch.rand(8, 1, 16, 16)}
    perception.adapt(obs)
    ((name, image),) = perception.maskable_images().items()
    assert name == "depth"
    all_hidden = torch.full_like(obs["depth"], float(obs["depth"].min()))
    context = image.encode_context(obs["depth"], torch.zeros(8, 0, dtype=torch.long))
    torch.testing.assert_close(context[:, 0], perception.branches["depth"](all_hidden))
    everything = torch.arange(16).expand(8, -1)
    state = perception(obs, {})
    torch.testing.assert_close(image.encode_context(obs["depth"], everything)[:, 0], state[:, -32:])


def predictor(name: str = "spatial", num_frames: int = 1) -> nn.Module:
    config = MaskedPredictorConfig(width=16, depth=2, heads=2)
    return config.build(encoder(name).maskable_images()[""], num_frames)


@pytest.mark.parametrize("num_frames", [1, 3])
def test_permuting_targets_permutes_predictions_and_each_position_has_its_own(num_frames):
    model, shown = predictor(num_frames=num_frames), torch.tensor([[0, 1, 5], [2, 3, 4]])
    context = torch.randn(2, num_frames, 3, 3, generator=rng())
    targets = torch.tensor([[[10, 11], [14, 15]], [[8, 9], [12, 13]]])
    predicted = model(context, shown, targets)
    assert predicted.shape == (2, 2, num_frames, 2, 3)
    swapped = model(context, shown, targets.flip(2))
    torch.testing.assert_close(swapped.flip(3), predicted)
    torch.testing.assert_close(model(context, shown, targets.flip(1)).flip(1), predicted)
    assert (predicted[..., 0, :] - predicted[..., 1, :]).abs().amax(-1).min() > 1e-3
    if num_frames > 1:
        assert (predicted[:, :, 0] - predicted[:, :, 1]).abs().amax(-1).min() > 1e-3


def test_predictions_depend_on_where_the_context_is_but_not_on_the_order_of_its_tokens():
    model, targets = predictor(), torch.tensor([[[10, 11]]])
    context, shown = torch.randn(1, 1, 3, 3, generator=rng()), torch.tensor([[0, 1, 5]])
    predicted = model(context, shown, targets)
    order = [2, 0, 1]
    torch.testing.assert_close(model(context[:, :, order], shown[:, order], targets), predicted)
    assert not torch.allclose(model(context, shown[:, order], targets), predicted, atol=1e-4)


def test_a_block_is_predicted_without_the_others():
    model, shown = predictor(), torch.tensor([[0, 1, 5]])
    context = torch.randn(1, 1, 3, 3, generator=rng())
    two = model(context, shown, torch.tensor([[[10, 11], [14, 15]]]))
    torch.testing.assert_close(two[:, :1], model(context, shown, torch.tensor([[[10, 11]]])))


class Brightness:
    """An encoder whose only feature is the mean of a patch times a weight, in images of one
    channel and of 2 by 2 patches of one pixel."""

    grid, side, patch_dim, context_dim, has_vector_state = (2, 2), 1, 1, 1, False

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def encode_patches(self, image: Tensor) -> Tensor:
        return self.weight * image.flatten(2).transpose(1, 2)

    def encode_context(self, image: Tensor, shown: Tensor) -> Tensor:
        return self.encode_patches(image).gather(1, shown[..., None])


class SumOfContext(nn.Module):
    """Predicts the sum of the context of a frame, plus the number of the patch."""

    mask_token = torch.zeros(1)

    def forward(self, context: Tensor, shown: Tensor, targets: Tensor) -> Tensor:
        return (context.sum((2, 3))[:, None, :, None] + targets[:, :, None])[..., None]


class Online(nn.Module):
    stop_gradient = False


def by_hand_loss(weights: MaskedLossWeights, frames: Tensor, weight: Tensor) -> dict[str, Tensor]:
    stage = PretrainMasked(weights=weights, num_frames=frames.shape[1])
    image = Brightness(weight)
    loss = MaskedImageLoss(stage, image, Online(), "")
    loss.predictor = SumOfContext()
    context, targets = torch.tensor([[0, 1], [2, 3]]), torch.tensor([[[2], [3]], [[0], [1]]])
    masks = Masks(context[: len(frames)], targets[: len(frames)])
    return loss(image, frames, masks, rng())


def test_the_error_is_the_mean_over_blocks_patches_frames_and_features():
    pixels = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8], [10, 20, 30, 40], [50, 60, 70, 80]])
    terms = by_hand_loss(MaskedLossWeights(), pixels.view(2, 2, 1, 2, 2), torch.tensor(0.5))
    # features: half of each pixel; predictions: their sum over the context, and the patch number
    first = (1.5 + 2 - 1.5) ** 2 + (1.5 + 3 - 2) ** 2 + (5.5 + 2 - 3.5) ** 2 + (5.5 + 3 - 4) ** 2
    second = (35 - 5) ** 2 + (35 + 1 - 10) ** 2 + (75 - 25) ** 2 + (75 + 1 - 30) ** 2
    assert set(terms) == {"prediction"}
    assert terms["prediction"].item() == pytest.approx((first + second) / 8)


def test_regularizers_see_every_patch_of_whole_images():
    frames, weight = torch.rand(1, 3, 1, 2, 2, generator=rng()), torch.tensor(0.5)
    weights = MaskedLossWeights(prediction=0, variance=1, covariance=1, sigreg=1)
    terms = by_hand_loss(weights, frames, weight)
    features = 0.5 * frames.view(3, 4)
    assert set(terms) == {"variance", "covariance", "sigreg"}
    torch.testing.assert_close(terms["variance"], losses.variance(features))
    assert terms["covariance"] == 0  # of a single feature
    torch.testing.assert_close(
        terms["sigreg"],
        losses.sigreg(features.reshape(-1, 1), losses.directions(1, rng())),
    )


def test_a_vector_state_is_regularized_beside_the_patches():
    image = encoder("image").maskable_images()[""]
    weights = MaskedLossWeights(variance=1, covariance=1)
    loss = MaskedImageLoss(PretrainMasked(weights=weights), image, Online(), "")
    frames, masks = images(6, 1, 2, 16, 16), MaskConfig().sample((4, 4), 6, rng())
    terms = loss(image, frames, masks, rng())
    state = image.encode_context(frames[:, 0], masks.context)[:, 0]
    patches = image.encode_patches(frames[:, 0])
    torch.testing.assert_close(
        terms["variance"], (losses.variance(patches.flatten(1)) + losses.variance(state)) / 2
    )
    torch.testing.assert_close(
        terms["covariance"],
        (losses.covariance(patches.flatten(0, 1)) + losses.covariance(state)) / 2,
    )


class NoContext(nn.Module):
    """Predicts 0 whatever the context is."""

    def forward(self, context: Tensor, shown: Tensor, targets: Tensor) -> Tensor:
        num_blocks, size = targets.shape[1:]
        return torch.zeros(len(context), num_blocks, context.shape[1], size, 32)


@pytest.mark.parametrize(
    ("target", "learns"),
    [
        (EMATargetConfig(), False),
        (StopGradientTargetConfig(), False),
        (OnlineTargetConfig(), True),
    ],
)
def test_targets_have_a_gradient_only_where_they_are_the_online_features(target, learns):
    perception = encoder("image")
    image, target_encoder = perception.maskable_images()[""], target.build(perception)
    loss = MaskedImageLoss(PretrainMasked(), image, target_encoder, "")
    loss.predictor = NoContext()
    frames, masks = images(6, 1, 2, 16, 16), MaskConfig().sample((4, 4), 6, rng())
    error = loss(image, frames, masks, rng())["prediction"]
    assert error.requires_grad == learns
    normalized = torch.tensor(1.0)  # the mean square after a LayerNorm
    assert torch.allclose(error, normalized, atol=0.1) != learns


def test_flow_of_the_true_motion_warps_the_next_frame_onto_the_one_before():
    before = torch.rand(1, 2, 6, 8, generator=rng())
    after = before.roll((1, 2), (2, 3))  # one pixel down, two to the right
    flow = torch.tensor([2.0, 1.0])[None, :, None, None].expand(1, 2, 6, 8)
    warped = warp(after, flow)
    torch.testing.assert_close(warped[..., :5, :6], before[..., :5, :6])
    assert losses.photometric(before, before).item() == pytest.approx(1e-3)
    far = losses.photometric(before + 0.5, before).item()
    assert far == pytest.approx(0.5, abs=1e-5)
    assert losses.flow_smoothness(flow) == 0
    ramp = torch.arange(8.0).expand(1, 1, 6, 8)
    assert losses.flow_smoothness(torch.cat([ramp, 0 * ramp], 1)).item() == pytest.approx(0.5)


def test_a_flow_head_learns_the_motion_of_two_images():
    torch.manual_seed(0)
    before = nn.functional.interpolate(torch.rand(1, 1, 4, 4), (16, 16), mode="bicubic")
    after = before.roll(1, 3)
    head = FlowHead((16, 4, 4), hidden=8)
    patches = [
        part.unfold(2, 4, 4).unfold(3, 4, 4).flatten(4).flatten(1, 3) for part in (before, after)
    ]
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    errors = []
    for _ in range(60):
        flow = head(*patches, (16, 16))
        error = losses.photometric(warp(after, flow), before)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.3 * errors[0]
    assert 0.5 < flow[0, 0, 4:12, 4:12].mean() < 1.5


def test_the_moving_average_takes_the_decay_of_the_schedule():
    source = nn.Linear(1, 1, bias=False)
    target = EMATargetConfig(decay=0.5, final_decay=1.0).build(source, 5)
    values = []
    for value in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0):
        nn.init.constant_(source.weight, value)
        target.update()
        values.append(target.average.module.weight.item())
    # decays 0 (a copy), 0.625, 0.75, 0.875, 1, 1
    second = 0.625 * 1 + 0.375 * 2
    third = 0.75 * second + 0.25 * 3
    fourth = 0.875 * third + 0.125 * 4
    assert values == pytest.approx([1.0, second, third, fourth, fourth, fourth])
    constant = EMATarget(source, 0.9)
    assert [constant.decay_at(step) for step in (0, 1, 100)] == [0.0, 0.9, 0.9]


def with_pretraining(config: Config, **changes) -> Config:
    stage = PretrainMasked(
        optim=OptimConfig(steps=4, batch_size=8, warmup_steps=1),
        predictor=MaskedPredictorConfig(width=16, depth=1, heads=2),
        **changes,
    )
    return override(config, {"stages.pretrain": stage})


def tiny_agent(config: Config, stage: str = "pretrain"):
    config = override(config, {"stages": {n: config.stages[n] for n in ("collect", stage)}})
    agent = build(config, config.env.build(1).spec, num_envs=8, buffer_size=33)
    collect = config.collect.start(agent, config.env, 0)
    while collect.step < collect.total:
        collect.update()
    collect.finish()
    return agent, config.stages[stage].start(agent, config.env, 0)


@pytest.fixture(scope="module")
def rooms() -> Config:
    return small(recipes.two_rooms())


def test_the_average_of_the_world_models_stage_has_its_updates_and_the_encoders_units(rooms):
    changes = {
        "perception": KeypointEncoderConfig(subtract_background=True),
        "stages.train_jepa.target_encoder": EMATargetConfig(decay=0.5, final_decay=1.0),
        "stages.train_jepa.optim.steps": 21,
    }
    agent, run = tiny_agent(override(rooms, changes), "train_jepa")
    (target,) = (part for part in run.module.modules() if isinstance(part, EMATarget))
    assert [target.decay_at(step) for step in (0, 10, 20)] == [0.0, 0.75, 1.0]
    assert agent.perception.background.any()
    assert (target.average.module.background == agent.perception.background).all()


def test_targets_get_no_gradient_and_the_copy_follows_perception(rooms):
    agent, run = tiny_agent(with_pretraining(rooms))
    perception, target, _ = run.module
    copy = [p.clone() for p in target.average.module.parameters()]
    run.update()
    assert all(p.grad is None for p in target.parameters())
    moved = list(target.average.module.parameters())
    assert all(torch.equal(a, b) for a, b in zip(moved, perception.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(moved, copy, strict=True))
    run.update()
    assert not torch.equal(moved[0], next(perception.parameters()))
    assert all(p.grad is not None for p in perception.parameters())  # of every layer
    assert agent.world_model.training  # and of no other module
    assert not any(p.grad is not None for p in agent.world_model.parameters())


def test_without_a_copy_the_targets_are_trained_too(rooms):
    weights = MaskedLossWeights(variance=1.0, covariance=0.1)
    changes = {"weights": weights, "target_encoder": OnlineTargetConfig()}
    agent, run = tiny_agent(with_pretraining(rooms, **changes))
    assert set(run.update()) >= {"prediction", "variance", "covariance", "loss"}
    assert all(p.grad is not None for p in agent.perception.parameters())


def test_a_tube_hides_the_same_patches_in_every_frame(rooms, monkeypatch):
    _, run = tiny_agent(with_pretraining(rooms, num_frames=3, weights=MaskedLossWeights(flow=1.0)))
    seen_shapes = []
    (loss,) = run.module[2]
    compute = loss._compute

    def record(image, frames, shown, hidden):
        seen_shapes.append((frames.shape[:2], shown.shape[0], hidden.shape[:2]))
        return compute(image, frames, shown, hidden)

    monkeypatch.setattr(loss, "_compute", record)
    metrics = run.update()
    assert seen_shapes == [((8, 3), 8, (8, 4))]  # one mask of each window
    assert metrics["flow"] > 0


ON_IMAGES = {
    "vector": {},
    "map": {"perception": SpatialEncoderConfig(patch=13)},
    "transformer": {"perception": PatchTransformerEncoderConfig(patch=13, width=16, depth=1)},
}


@pytest.mark.parametrize("name", ON_IMAGES)
def test_a_run_continues_from_its_state_as_if_it_had_not_stopped(rooms, name):
    config = override(with_pretraining(rooms, num_frames=2), ON_IMAGES[name])
    agent, run = tiny_agent(config)
    run.update()
    state = {name: part.clone() for name, part in run.state_dict().items()}
    expected = [run.update()["loss"] for _ in range(2)]
    weights = [p.clone() for p in agent.perception.parameters()]
    other, resumed = tiny_agent(config)
    resumed.load_state_dict(state)
    assert [resumed.update()["loss"] for _ in range(2)] == expected
    assert all(map(torch.equal, other.perception.parameters(), weights))


def test_training_resumes_exactly_probes_for_collapse_and_draws_the_masks(
    rooms, tmp_path, monkeypatch
):
    config = with_pretraining(rooms)
    config = override(config, {"stages": {n: config.stages[n] for n in ("collect", "pretrain")}})
    monkeypatch.setattr("ami_agent.probing.probe.FACTOR_ENVS", 8)
    whole = train(config, out=tmp_path / "whole")
    picture = np.asarray(Image.open(tmp_path / "whole" / "masks.png"))
    assert picture.shape[2] == 3
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 5
    log = (tmp_path / "whole" / "metrics.jsonl").read_text()
    assert '"prediction"' in log
    assert '"effective_rank"' in log
    update = MaskedRun.update

    def interrupted(self):
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return update(self)

    with monkeypatch.context() as patch:
        patch.setattr(MaskedRun, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config, out=tmp_path / "cut")
    resumed = train(config, out=tmp_path / "cut", resume=True)
    for (key, one), other in zip(
        whole.state_dict().items(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), key


def test_a_frozen_perception_keeps_its_weights_while_the_world_model_learns(rooms):
    config = override(rooms, {"stages.train_jepa.freeze_perception": True})
    agent = build(config, config.env.build(1).spec, num_envs=8, buffer_size=33)
    collect = config.collect.start(agent, config.env, 0)
    while collect.step < collect.total:
        collect.update()
    collect.finish()
    run = config.stages["train_jepa"].start(agent, config.env, 0)
    perception, model = (
        [p.clone() for p in part.parameters()] for part in (agent.perception, agent.world_model)
    )
    run.update()
    assert all(map(torch.equal, perception, agent.perception.parameters()))
    assert not all(map(torch.equal, model, agent.world_model.parameters()))


def test_what_cannot_be_masked_is_refused_before_anything_is_trained(rooms):
    stage = with_pretraining(rooms).stages["pretrain"]
    for config, message in (
        (recipes.maze(), "has none to hide in observations"),
        (override(rooms, {"perception": KeypointEncoderConfig()}), "KeypointEncoder has none"),
        (
            override(recipes.two_rooms_distracted(), {"configurator.modality_weights.scene": 0.0}),
            "MultiModalEncoder has none",
        ),
    ):
        with pytest.raises(ConfigError, match=message) as error:
            check_config(override(config, {"stages.pretrain": stage}))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages.pretrain.masks.num_targets": 9}, "pretrain.masks: num_targets is 9 and an image"),
        ({"stages.pretrain.num_frames": 999}, "num_frames is 999, but an episode has"),
        ({"stages.pretrain.weights.flow": 1.0}, "num_frames is 1; it must be at least 2"),
        ({"stages.pretrain.weights.prediction": 0.0}, "one of them must not be, or nothing"),
        (
            {
                "stages.pretrain.target_encoder": OnlineTargetConfig(),
                "stages.pretrain.weights.variance": 0.0,
            },
            "the same features unless",
        ),
        (
            {"perception": PatchTransformerEncoderConfig(patch=8)},
            "65 by 65: perception.patch must be one of 1, 5, 13, 65",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_a_line(rooms, changes, message):
    with pytest.raises(ConfigError, match=message):
        check_config(override(with_pretraining(rooms), changes))


@pytest.mark.parametrize("kind", [PatchTransformerEncoderConfig, MaskedPredictorConfig])
def test_heads_divide_the_width(kind):
    with pytest.raises(BadSetting, match="heads is 3; it must be a divisor of width, 64"):
        kind(heads=3)
    with pytest.raises(BadSetting, match="width is 30; it must be a multiple of 4"):
        kind(width=30, heads=3)


def test_a_flag_of_the_stage_adds_it_and_an_ablation_removes_it(capsys, tmp_path):
    line = error_line(
        capsys, "train", "two-rooms", "--out", tmp_path / "run", "--pretrain.masks.num-targets", 12
    )
    assert "pretrain.masks: num_targets is 12" in line
    base = recipes.two_rooms()
    for words in (["--out", "pretrain"], ["--data", "pretrain.npz"], ["--without", "pretrain"]):
        assert "pretrain" not in choose_components(base, words)[0].stages
    assert "pretrain" in choose_components(base, ["--pretrain.optim.steps", "5"])[0].stages
    assert "pretrain" not in removable(base)
    config = with_pretraining(base)
    assert list(config.stages)[:3] == ["collect", "pretrain", "train_jepa"]
    assert without(config, "pretrain") == base
