"""Points are where features are, and movements are seen as such."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from modules.perception import KeypointEncoder
from modules.types import UnusableInput

SIDE = 16
MOMENTS = {"now": (0, 1), "before": (0, 2)}


def dots(places: Tensor) -> Tensor:
    """Places [N, 2] in pixels -> images [N, SIDE, SIDE] uint8 of a soft dot each."""
    pixel = torch.arange(SIDE)
    x, y = (torch.exp(-((pixel - along[:, None]) ** 2) / 2) for along in places.unbind(-1))
    return (255 * y[:, :, None] * x[:, None]).round().to(torch.uint8)


def seer(image: int = 3, **told) -> KeypointEncoder:
    torch.manual_seed(0)
    config = KeypointEncoder.Config(**{"points": 4, "channels": 4, "hidden": 16, **told})
    return config.build({"obs": (image, SIDE, SIDE)})


def scene(now: Tensor, before: Tensor) -> Tensor:
    walls = torch.zeros(len(now), SIDE, SIDE, dtype=torch.uint8)
    walls[:, 5] = 255
    return torch.stack([walls, dots(now), dots(before)], 1)


def bright() -> KeypointEncoder:
    """One feature: what is bright."""
    eyes = seer(1, points=1, channels=1, stride=1, kernel=3)
    with torch.no_grad():
        eyes.points.sharpness.fill_(1.0)
        for layer in (eyes.points.look[0], eyes.points.look[2]):
            layer.weight.zero_()
            layer.bias.zero_()
            layer.weight[0, 0, layer.weight.shape[2] // 2, layer.weight.shape[3] // 2] = 1.0
    return eyes


def test_a_point_is_where_the_feature_is_and_moves_with_less_than_a_pixel():
    places = torch.tensor([[4.0, 9.0], [4.3, 9.0], [4.3, 8.6], [11.0, 3.5]])
    seen = bright().points(dots(places)[:, None] / 255)
    pixels = (seen + 1) / 2 * (SIDE - 1)
    torch.testing.assert_close(pixels, places, atol=0.2, rtol=0)
    # what is a third of a pixel to the right is seen to be further right, and nothing else
    right, up = pixels[1] - pixels[0], pixels[2] - pixels[1]
    assert right[0] > 0.1 > right[1].abs() * 5
    assert up[1] < -0.2 < -up[0].abs() * 3


def test_where_a_thing_is_does_not_depend_on_how_bright_the_image_is():
    eyes, image = bright(), dots(torch.tensor([[6.0, 7.0]]))[:, None] / 255
    torch.testing.assert_close(eyes.points(image), eyes.points(image / 2), atol=0.01, rtol=0)


def test_movement_is_nothing_where_both_moments_are_alike():
    still = scene(*[torch.tensor([[5.0, 9.0], [8.0, 2.0]])] * 2)
    eyes = seer(**MOMENTS)
    slow = eyes(still, {})
    eyes.motion = 100.0
    assert torch.equal(eyes(still, {}), slow)
    moving = scene(torch.tensor([[5.0, 9.0]]), torch.tensor([[4.0, 9.0]]))
    fast = eyes(moving, {})
    eyes.motion = 1.0
    assert not torch.allclose(eyes(moving, {}), fast)


def test_one_moment_is_seen_where_only_one_is_named():
    now, before = torch.tensor([[5.0, 9.0]]), torch.tensor([[4.0, 9.0]])
    eyes = seer(now=(0, 1))
    assert torch.equal(eyes(scene(now, before), {}), eyes(scene(now, now), {}))
    assert not torch.equal(eyes(scene(now, before), {}), eyes(scene(before, now), {}))


def test_every_channel_is_seen_where_none_is_named():
    now, before = torch.tensor([[5.0, 9.0]]), torch.tensor([[4.0, 9.0]])
    assert not torch.equal(seer()(scene(now, before), {}), seer()(scene(now, now), {}))


def test_place_and_speed_can_be_learnt():
    dice = torch.Generator().manual_seed(0)
    now = 3 + 10 * torch.rand(256, 2, generator=dice)
    pace = 3 * torch.rand(256, 2, generator=dice) - 1.5
    images, wanted = scene(now, now - pace), torch.cat([now / SIDE, pace], -1)
    eyes = seer(**MOMENTS, state=4, hidden=32)
    optimiser = torch.optim.Adam(eyes.parameters(), 3e-3)
    for _ in range(250):
        loss = (eyes(images, {}) - wanted).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    missed = (eyes(images, {}) - wanted).square().mean(0)
    assert (missed / wanted.var(0)).max() < 0.2


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"now": (0, 1), "before": (2,)}, "now has 2 channels and before 1"),
        ({"now": (0, 3)}, "channel 3 of an image that has 3"),
        ({"now": (0,), "before": (-1,)}, "before is -1; it must be a whole number from 0"),
        ({"points": 0}, "points is 0"),
    ],
)
def test_channels_that_do_not_exist_are_named(told, why):
    with pytest.raises(UnusableInput, match=why):
        seer(**told)
