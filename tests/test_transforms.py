# SPDX-License-Identifier: Apache-2.0
"""Clip transforms against plain numpy formulas."""

import cv2
import numpy as np
import pytest

from mindvideo.data import transforms
from mindvideo.data.transforms import ARN_MEAN, ARN_STD, ClipTransform
from mindvideo.errors import InputError

LUMA = np.array([0.299, 0.587, 0.114])


@pytest.fixture(scope="module")
def frames_THWC() -> np.ndarray:
    """Six smooth random frames, 48 x 64."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 6, 8, 3), dtype=np.uint8)
    return np.stack([cv2.resize(frame, (64, 48)) for frame in noise])


def test_plain_transform_is_a_resize_and_a_normalisation(frames_THWC):
    clip_CTHW = ClipTransform((32, 40))(frames_THWC, None)
    assert clip_CTHW.shape == (3, 6, 32, 40)
    assert clip_CTHW.dtype == np.float32
    assert clip_CTHW.flags.c_contiguous
    for t, frame in enumerate(frames_THWC):
        pixels_HWC = cv2.resize(frame, (40, 32), interpolation=cv2.INTER_LINEAR) / 255
        expected_CHW = ((pixels_HWC - ARN_MEAN) / ARN_STD).transpose(2, 0, 1)
        np.testing.assert_allclose(clip_CTHW[:, t], expected_CHW, atol=1e-6)


def test_statistics_by_channel_and_the_way_back(frames_THWC):
    transform = ClipTransform((48, 64), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    clip_CTHW = transform(frames_THWC, None)
    blue_THW = (frames_THWC[..., 2] / 255 - 0.3) / 0.6
    np.testing.assert_allclose(clip_CTHW[2], blue_THW, atol=1e-6)
    assert np.array_equal(transform.denormalize(clip_CTHW), frames_THWC)
    assert transform.denormalize(clip_CTHW + 100).min() == 255
    assert transform.denormalize(clip_CTHW - 100).max() == 0


def area_weights(old: int, new: int) -> np.ndarray:
    """`[new, old]`: each output pixel is the mean of the stretch of input it covers."""
    edges = np.linspace(0, old, new + 1)
    overlap = np.minimum(edges[1:, None], np.arange(1, old + 1)) - np.maximum(edges[:-1, None], np.arange(old))
    return np.maximum(overlap, 0) * new / old


def linear_weights(old: int, new: int) -> np.ndarray:
    """`[new, old]`: interpolation between pixel centres, constant beyond the outermost."""
    centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(old)))


@pytest.mark.parametrize("size", [(24, 32), (12, 16), (16, 21), (40, 40), (20, 33), (96, 128), (100, 33)])
def test_resize_is_area_mean_or_bilinear(frames_THWC, size):
    weights = area_weights if 2 * size[0] <= 48 and 2 * size[1] <= 64 else linear_weights
    rows, columns = weights(48, size[0]), weights(64, size[1])
    expected = np.einsum("yh,xw,thwc->tyxc", rows, columns, frames_THWC.astype(float))
    resized = transforms.resize_frames(frames_THWC, size)
    assert resized.shape == (6, *size, 3)
    assert np.abs(resized - expected).max() <= 1


def test_resize_reads_views_and_leaves_equal_sizes_alone(frames_THWC):
    view = transforms.flip_frames(transforms.crop_frames(frames_THWC, 3, 5, 20, 30))
    assert np.array_equal(transforms.resize_frames(view, (14, 18)), transforms.resize_frames(view.copy(), (14, 18)))
    assert transforms.resize_frames(frames_THWC, (48, 64)) is frames_THWC


@pytest.mark.parametrize(
    ("shape", "side", "expected"),
    [((48, 64), 24, (24, 32)), ((64, 48), 96, (128, 96)), ((50, 75), 33, (33, 50))],
)
def test_short_side_resize_keeps_the_shape(shape, side, expected):
    frames = np.zeros((1, *shape, 3), np.uint8)
    assert transforms.short_side_resize(frames, side).shape[1:3] == expected


def test_crops(frames_THWC):
    middle = transforms.center_crop(frames_THWC, (20, 30))
    assert np.array_equal(middle, frames_THWC[:, 14:34, 17:47])
    left, centre, right = transforms.three_crop(frames_THWC, (48, 48))
    assert np.array_equal(left, frames_THWC[:, :, :48])
    assert np.array_equal(centre, frames_THWC[:, :, 8:56])
    assert np.array_equal(right, frames_THWC[:, :, 16:])
    upright = frames_THWC.swapaxes(1, 2)
    assert np.array_equal(transforms.three_crop(upright, (48, 48))[2], upright[:, 16:])
    with pytest.raises(InputError, match="a crop of 49 x 10"):
        transforms.center_crop(frames_THWC, (49, 10))


def test_random_crop_boxes_fit_and_cover_the_range():
    rng = np.random.default_rng(0)
    boxes = np.array([transforms.random_crop_box(48, 64, (0.3, 0.9), rng) for _ in range(3000)])
    top, left, height, width = boxes.T
    assert min(top.min(), left.min()) == 0
    assert (top + height).max() == 48
    assert (left + width).max() == 64
    share = height * width / (48 * 64)
    assert 0.28 < share.min() < 0.32
    assert 0.88 < share.max() < 0.92
    assert abs(share.mean() - 0.6) < 0.02
    stretch = (width / 64) / (height / 48)
    assert 1.1**-2 - 0.05 < stretch.min() < 1
    assert 1 < stretch.max() < 1.1**2 + 0.05


def test_jitter_agrees_with_the_three_steps(frames_THWC):
    brightness, contrast, saturation = 0.9, 0.8, 1.2
    brighter = brightness * frames_THWC.astype(float)
    grey = (brighter @ LUMA).mean()
    contrasted = contrast * brighter + (1 - contrast) * grey
    expected = saturation * contrasted + (1 - saturation) * (contrasted @ LUMA)[..., None]
    jittered = transforms.jitter_color(frames_THWC, brightness, contrast, saturation)
    assert jittered.dtype == np.uint8
    assert np.abs(jittered - np.clip(expected, 0, 255)).max() <= 1
    assert np.array_equal(transforms.jitter_color(frames_THWC, 1, 1, 1), frames_THWC)
    greys = transforms.jitter_color(frames_THWC, 1, 1, 0)
    assert np.ptp(greys.astype(int), axis=-1).max() == 0


def test_one_draw_serves_all_frames():
    frame = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    transform = ClipTransform((32, 32), flip=True, crop_scale=(0.4, 1.0), color=0.4)
    rng = np.random.default_rng(0)
    clips = [transform(np.stack([frame] * 4), rng) for _ in range(8)]
    for clip_CTHW in clips:
        assert np.array_equal(clip_CTHW, clip_CTHW[:, :1].repeat(4, axis=1))
    assert len({clip.tobytes() for clip in clips}) == 8


def test_the_same_generator_gives_the_same_clip(frames_THWC):
    transform = ClipTransform((32, 32), flip=True, crop_scale=(0.4, 1.0), color=0.4)
    first, second = (transform(frames_THWC, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first, second)
    plain = ClipTransform((32, 32))(frames_THWC, None)
    assert np.array_equal(transform(frames_THWC, None), plain)
    assert np.array_equal(ClipTransform((32, 32))(frames_THWC, np.random.default_rng(3)), plain)


def test_flip_mirrors_half_of_the_clips(frames_THWC):
    transform = ClipTransform((48, 64), flip=True)
    plain = transform(frames_THWC, None)
    rng = np.random.default_rng(0)
    mirrored = 0
    for _ in range(200):
        clip = transform(frames_THWC, rng)
        is_mirrored = not np.array_equal(clip, plain)
        assert not is_mirrored or np.array_equal(clip, plain[..., ::-1])
        mirrored += is_mirrored
    assert 70 < mirrored < 130


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (0, 4)}, "size is"),
        ({"std": (0.1, 0.0, 0.1)}, "std is"),
        ({"crop_scale": (0.5, 1.2)}, "crop_scale is"),
        ({"crop_scale": (0.9, 0.5)}, "crop_scale is"),
        ({"color": 1.0}, "color is"),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        ClipTransform(**{"size": (8, 8), **settings})
