"""Keypoints are where features are, and motion is their difference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from modules.perception.image import KeypointEncoder, KeypointEncoderConfig
from modules.types import ConfigError

SIDE = 16
MOMENTS = {"current_channels": (0, 1), "previous_channels": (0, 2)}


def dots(positions: Tensor) -> Tensor:
    """Positions [N, 2] in pixels -> images [N, SIDE, SIDE] uint8 of a soft dot each."""
    pixel = torch.arange(SIDE)
    x, y = (torch.exp(-((pixel - along[:, None]) ** 2) / 2) for along in positions.unbind(-1))
    return (255 * y[:, :, None] * x[:, None]).round().to(torch.uint8)


def seer(image: int = 3, **output) -> KeypointEncoder:
    torch.manual_seed(0)
    config = KeypointEncoderConfig(**{"points": 4, "channels": 4, "hidden": 16, **output})
    return config.build({"obs": (image, SIDE, SIDE)})


def scene(now: Tensor, before: Tensor) -> Tensor:
    walls = torch.zeros(len(now), SIDE, SIDE, dtype=torch.uint8)
    walls[:, 5] = 255
    return torch.stack([walls, dots(now), dots(before)], 1)


def bright() -> KeypointEncoder:
    """One feature: brightness."""
    factory = seer(1, points=1, channels=1, stride=1, kernel=3)
    with torch.no_grad():
        factory.points.sharpness.fill_(1.0)
        for layer in (factory.points.feature_maps[0], factory.points.feature_maps[2]):
            layer.weight.zero_()
            layer.bias.zero_()
            layer.weight[0, 0, layer.weight.shape[2] // 2, layer.weight.shape[3] // 2] = 1.0
    return factory


def test_a_keypoint_is_where_the_feature_is_and_moves_with_less_than_a_pixel():
    positions = torch.tensor([[4.0, 9.0], [4.3, 9.0], [4.3, 8.6], [11.0, 3.5]])
    observed = bright().points(dots(positions)[:, None] / 255)
    pixels = (observed + 1) / 2 * (SIDE - 1)
    torch.testing.assert_close(pixels, positions, atol=0.2, rtol=0)
    # a third of a pixel to the right is read as further right, and nothing else changes
    right, up = pixels[1] - pixels[0], pixels[2] - pixels[1]
    assert right[0] > 0.1 > right[1].abs() * 5
    assert up[1] < -0.2 < -up[0].abs() * 3


def test_the_position_of_an_object_does_not_depend_on_the_brightness():
    factory, image = bright(), dots(torch.tensor([[6.0, 7.0]]))[:, None] / 255
    torch.testing.assert_close(factory.points(image), factory.points(image / 2), atol=0.01, rtol=0)


def test_motion_is_zero_where_both_frames_are_alike():
    still = scene(*[torch.tensor([[5.0, 9.0], [8.0, 2.0]])] * 2)
    factory = seer(**MOMENTS)
    slow = factory(still, {})
    factory.motion_scale = 100.0
    assert torch.equal(factory(still, {}), slow)
    moving = scene(torch.tensor([[5.0, 9.0]]), torch.tensor([[4.0, 9.0]]))
    fast = factory(moving, {})
    factory.motion_scale = 1.0
    assert not torch.allclose(factory(moving, {}), fast)


def test_one_frame_is_encoded_where_only_one_is_named():
    now, before = torch.tensor([[5.0, 9.0]]), torch.tensor([[4.0, 9.0]])
    factory = seer(current_channels=(0, 1))
    assert torch.equal(factory(scene(now, before), {}), factory(scene(now, now), {}))
    assert not torch.equal(factory(scene(now, before), {}), factory(scene(before, now), {}))


def test_every_channel_is_encoded_where_none_is_named():
    now, before = torch.tensor([[5.0, 9.0]]), torch.tensor([[4.0, 9.0]])
    assert not torch.equal(seer()(scene(now, before), {}), seer()(scene(now, now), {}))


def test_what_never_moves_is_subtracted():
    positions = torch.rand(300, 2, generator=torch.Generator().manual_seed(1)) * SIDE
    moving = dots(positions)[:, None] // 2
    generator = torch.Generator().manual_seed(2)
    background = torch.randint(0, 120, (1, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    plain, subtracting = seer(1), seer(1, subtract_background=True)
    subtracting.load_state_dict(plain.state_dict(), strict=False)
    subtracting.adapt(background + moving)
    assert subtracting.adapt_sizes["obs"] >= 100
    config = KeypointEncoderConfig(subtract_background=True)
    assert list(config.build({"camera": (1, SIDE, SIDE)}).adapt_sizes) == ["camera"]
    torch.testing.assert_close(subtracting(background + moving, {}), plain(moving, {}))
    assert (plain(background + moving, {}) - plain(moving, {})).abs().max() > 0.01
    # under any name, and with any weight of the modality
    named = {"camera": background + moving}
    weight = {"camera": 0.5, "obs": 0.5}
    torch.testing.assert_close(subtracting(named, weight), plain(moving, weight))
    # the background is kept with the weights
    loaded = seer(1, subtract_background=True)
    loaded.load_state_dict(subtracting.state_dict())
    assert (loaded(moving, {}) == subtracting(moving, {})).all()


def test_position_and_speed_can_be_learnt():
    rng = torch.Generator().manual_seed(0)
    now = 3 + 10 * torch.rand(256, 2, generator=rng)
    pace = 3 * torch.rand(256, 2, generator=rng) - 1.5
    images, target = scene(now, now - pace), torch.cat([now / SIDE, pace], -1)
    factory = seer(**MOMENTS, state_dim=4, hidden=32)
    optimiser = torch.optim.Adam(factory.parameters(), 3e-3)
    for _ in range(250):
        loss = (factory(images, {}) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    missed = (factory(images, {}) - target).square().mean(0)
    assert (missed / target.var(0)).max() < 0.2


@pytest.mark.parametrize(
    ("output", "why"),
    [
        (
            {"current_channels": (0, 1), "previous_channels": (2,)},
            "current_channels has 2 channels and previous_channels 1",
        ),
        ({"current_channels": (0, 3)}, "channel 3 of an image that has 3"),
        (
            {"current_channels": (0,), "previous_channels": (-1,)},
            "previous_channels is -1; it must be a whole number from 0",
        ),
        ({"points": 0}, "points is 0"),
    ],
)
def test_channels_that_do_not_exist_are_named(output, why):
    with pytest.raises(ConfigError, match=why):
        seer(**output)
