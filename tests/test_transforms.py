# SPDX-License-Identifier: Apache-2.0
"""Clip transforms against plain numpy formulas."""

import cv2
import numpy as np
import pytest

from mindvideo.data import crops, transforms
from mindvideo.data.transforms import (
    ARN_MEAN,
    ARN_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    ClipTransform,
    TrainTransform,
    ViewTransform,
)
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
    view = transforms.flip_frames(crops.crop_frames(frames_THWC, (3, 5, 20, 30)))
    assert np.array_equal(transforms.resize_frames(view, (14, 18)), transforms.resize_frames(view.copy(), (14, 18)))
    assert transforms.resize_frames(frames_THWC, (48, 64)) is frames_THWC


@pytest.mark.parametrize(
    ("shape", "side", "expected"),
    [((48, 64), 24, (24, 32)), ((64, 48), 96, (128, 96)), ((50, 75), 33, (33, 50))],
)
def test_short_side_resize_keeps_the_shape(shape, side, expected):
    frames = np.zeros((1, *shape, 3), np.uint8)
    assert transforms.short_side_resize(frames, side).shape[1:3] == expected


def test_short_side_resize_rounds_halves_up_and_never_takes_the_area(frames_THWC):
    assert transforms.short_side_resize(np.zeros((1, 44, 50, 3), np.uint8), 22).shape[1:3] == (22, 25)
    assert transforms.short_side_resize(np.zeros((1, 50, 61, 3), np.uint8), 25).shape[1:3] == (25, 31)
    small = transforms.short_side_resize(frames_THWC, 12)
    for frame, out in zip(frames_THWC, small, strict=True):
        assert np.array_equal(out, cv2.resize(frame, (16, 12), interpolation=cv2.INTER_LINEAR))
    assert not np.array_equal(small, transforms.resize_frames(frames_THWC, (12, 16)))


def test_fixed_boxes():
    assert crops.center_box(48, 64, 20) == (14, 22, 20, 20)
    assert crops.three_boxes(48, 64, 48) == [(0, 0, 48, 48), (0, 16, 48, 48), (0, 8, 48, 48)]
    assert crops.three_boxes(64, 48, 48) == [(0, 0, 48, 48), (16, 0, 48, 48), (8, 0, 48, 48)]
    # 17 columns are free: the outer two are 8 from the middle, and the last column is left out
    assert crops.three_boxes(48, 65, 48) == [(0, 0, 48, 48), (0, 16, 48, 48), (0, 8, 48, 48)]
    assert crops.three_boxes(50, 64, 40) == [(5, 0, 40, 40), (5, 24, 40, 40), (5, 12, 40, 40)]


def test_a_crop_is_a_view_inside_the_frame(frames_THWC):
    cut = crops.crop_frames(frames_THWC, (3, 5, 20, 30))
    assert np.array_equal(cut, frames_THWC[:, 3:23, 5:35])
    assert cut.base is not None
    for box in ((0, 0, 49, 10), (-1, 0, 10, 10), (40, 0, 10, 10), (0, 60, 10, 10)):
        with pytest.raises(InputError, match="leaves the frame 48 x 64"):
            crops.crop_frames(frames_THWC, box)


def test_multiscale_candidates_of_i3d_and_tsm():
    i3d, tsm = crops.CROPS["multiscale_5"], crops.CROPS["multiscale_13"]
    assert i3d.sizes(256, 340) == [(256, 256), (204, 204)]
    assert i3d.corners(40, 80) == [(0, 0), (0, 80), (40, 0), (40, 80), (20, 40)]
    sides = [256, 224, 192, 168]
    assert set(tsm.sizes(340, 256)) == {
        (a, b) for a in sides for b in sides if abs(sides.index(a) - sides.index(b)) < 2
    }
    places = tsm.corners(42, 87)  # quarters of 10 and 21
    assert places[:5] == [(0, 0), (0, 84), (40, 0), (40, 84), (20, 42)]
    assert set(places) == {(10 * y, 21 * x) for y in range(5) for x in range(5) if (x + y) % 2 == 0}
    assert len(places) == 13


@pytest.mark.parametrize("name", ["multiscale_5", "multiscale_13"])
def test_every_multiscale_candidate_is_drawn(name):
    crop, rng = crops.CROPS[name], np.random.default_rng(0)
    candidates = {
        (top, left, height, width)
        for height, width in crop.sizes(48, 64)
        for top, left in crop.corners(48 - height, 64 - width)
    }
    drawn = {crop.box(48, 64, rng) for _ in range(3000)}
    assert drawn == candidates


def test_resized_crops_have_their_area_and_ratio():
    rng = np.random.default_rng(0)
    crop = crops.ResizedCrop(area=(0.2, 0.4))
    boxes = np.array([crop.box(480, 640, rng) for _ in range(2000)])
    top, left, height, width = boxes.T
    share, ratio = height * width / (480 * 640), width / height
    assert 0.198 < share.min() < 0.21
    assert 0.39 < share.max() < 0.402
    assert abs(share.mean() - 0.3) < 0.005
    assert 0.748 < ratio.min() < 0.76
    assert 1.32 < ratio.max() < 1.337
    assert abs(np.log(ratio).mean()) < 0.015
    assert min(top.min(), left.min()) >= 0
    assert ((top + height <= 480) & (left + width <= 640)).all()


def test_a_resized_crop_that_never_fits_is_the_middle_square():
    crop = crops.ResizedCrop(area=(1.0, 1.0), ratio=(1.0, 1.0))
    assert crop.box(48, 64, np.random.default_rng(0)) == (0, 8, 48, 48)
    assert crop.box(48, 48, np.random.default_rng(0)) == (0, 0, 48, 48)


def test_random_crop_boxes_fit_and_cover_the_range():
    rng = np.random.default_rng(0)
    boxes = np.array([crops.random_crop_box(48, 64, (0.3, 0.9), rng) for _ in range(3000)])
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


def normal(frames_THWC: np.ndarray) -> np.ndarray:
    """`[3, T, H, W]` in float64."""
    return ((frames_THWC - np.array(IMAGENET_MEAN)) / IMAGENET_STD).transpose(3, 0, 1, 2)


@pytest.mark.parametrize("crop", crops.CROPS)
def test_a_training_clip_is_resized_cut_resized_and_normalised(frames_THWC, crop):
    clip_CTHW = TrainTransform(24, 36, crop, flip=False)(frames_THWC, np.random.default_rng(5))
    resized = transforms.short_side_resize(frames_THWC, 36)
    box = crops.CROPS[crop].box(36, 48, np.random.default_rng(5))
    cut = transforms.resize_bilinear(crops.crop_frames(resized, box), (24, 24))
    assert clip_CTHW.shape == (3, 6, 24, 24)
    assert clip_CTHW.dtype == np.float32
    assert clip_CTHW.flags.c_contiguous
    np.testing.assert_allclose(clip_CTHW, normal(cut), atol=1e-6)


def test_a_training_clip_may_keep_the_size_of_its_frames(frames_THWC):
    """As TPN trains: the random crop is cut from frames as they are."""
    clip_CTHW = TrainTransform(24, 0, "resized", flip=False)(frames_THWC, np.random.default_rng(5))
    box = crops.CROPS["resized"].box(48, 64, np.random.default_rng(5))
    cut = transforms.resize_bilinear(crops.crop_frames(frames_THWC, box), (24, 24))
    np.testing.assert_allclose(clip_CTHW, normal(cut), atol=1e-6)


def test_training_without_a_generator_takes_the_middle_square(frames_THWC):
    clip_CTHW = TrainTransform(48, 48, color=True)(frames_THWC, None)
    np.testing.assert_allclose(clip_CTHW, normal(frames_THWC[:, :, 8:56]), atol=1e-6)


def test_one_draw_serves_all_frames_of_a_training_clip():
    frame = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    transform = TrainTransform(32, 40, "multiscale_13", color=True)
    rng = np.random.default_rng(0)
    clips = [transform(np.stack([frame] * 4), rng) for _ in range(8)]
    for clip_CTHW in clips:
        np.testing.assert_array_equal(clip_CTHW, clip_CTHW[:, :1].repeat(4, axis=1))
        assert clip_CTHW.dtype == np.float32
        assert clip_CTHW.flags.c_contiguous
    assert len({clip.tobytes() for clip in clips}) == 8


def test_half_of_the_training_clips_are_mirrored(frames_THWC):
    squares = frames_THWC[:, :, 8:56]
    transform, rng = TrainTransform(48, 48), np.random.default_rng(0)
    plain = transform(squares, None)
    clips = [transform(squares, rng) for _ in range(400)]
    same, mirrored = (sum(np.array_equal(clip, one) for clip in clips) for one in (plain, plain[..., ::-1]))
    assert 150 < same + mirrored < 250  # one of the two sizes is the whole frame
    assert 0.4 < mirrored / (same + mirrored) < 0.6


def test_colours_change_step_by_step():
    """Each step of `color_map` on its own, as formulas on pixels, then the first three in order."""
    rng = np.random.default_rng(0)
    pixels_NC = rng.uniform(0, 255, (50, 3))
    dark = np.zeros(3)

    def apply(*arguments) -> np.ndarray:
        gains_CC, offsets_C = transforms.color_map(*arguments)
        return pixels_NC @ gains_CC.T + offsets_C

    grey_N1 = (pixels_NC @ LUMA)[:, None]
    np.testing.assert_allclose(apply(0, 1, 1, 0, dark), pixels_NC, atol=1e-9)
    np.testing.assert_allclose(apply(-20, 1, 1, 0, dark), pixels_NC - 20, atol=1e-9)
    np.testing.assert_allclose(apply(0, 0.7, 1, 0, dark), 0.7 * pixels_NC, atol=1e-9)
    np.testing.assert_allclose(apply(0, 1, 1.3, 0, dark), grey_N1 + 1.3 * (pixels_NC - grey_N1), atol=1e-9)
    # Half a turn mirrors the colours about grey. YIQ with three digits sees 0.001 of a grey as chroma I and as Q, which
    # come back into RGB by 1.11 and 1.71 at most.
    half = apply(0, 1, 1, np.pi, dark)
    np.testing.assert_allclose(half, 2 * grey_N1 - pixels_NC, atol=2 * 0.001 * 255 * (1.11 + 1.71))
    quarter_CC, _ = transforms.color_map(0, 1, 1, np.pi / 2, dark)
    np.testing.assert_allclose(pixels_NC @ (quarter_CC @ quarter_CC).T, half, atol=1e-9)
    np.testing.assert_allclose(apply(0, 1, 1, 1.1, dark) @ LUMA, grey_N1[:, 0], atol=1e-9)
    light = np.array([0.1, -0.2, 0.3])
    shift = apply(0, 1, 1, 0, light) - pixels_NC
    first = np.array([-0.5675, -0.5808, -0.5836]) * 5.546
    second = np.array([0.7192, -0.0045, -0.6948]) * -0.9588
    third = np.array([0.4009, -0.8140, 0.4203]) * 0.3444
    np.testing.assert_allclose(shift, np.tile(first + second + third, (50, 1)), atol=1e-3)
    brighter = pixels_NC + 12
    grey_N1 = (brighter @ LUMA)[:, None]
    np.testing.assert_allclose(apply(12, 0.8, 0.6, 0, dark), 0.8 * (grey_N1 + 0.6 * (brighter - grey_N1)), atol=1e-9)


def test_colours_are_drawn_in_their_ranges():
    rng = np.random.default_rng(0)
    rows = [transforms.draw_color(rng) for _ in range(2000)]
    values, light = np.array([row[:4] for row in rows]), np.array([row[4] for row in rows])
    for column, neutral, low, high in zip(
        values.T, (0, 1, 1, 0), (-32, 0.6, 0.6, -np.pi), (32, 1.4, 1.4, np.pi), strict=True
    ):
        changed = column[column != neutral]
        assert 0.45 < len(changed) / len(column) < 0.55
        assert low <= changed.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < changed.max() <= high
    assert np.abs(light.mean(axis=0)).max() < 0.01
    assert np.abs(light.std(axis=0) - 0.1).max() < 0.01


def test_a_recoloured_clip_is_mapped_then_normalised(frames_THWC):
    squares = frames_THWC[:, :, :48]
    transform = TrainTransform(48, 48, "resized", flip=False, color=True)
    rng = np.random.default_rng(3)
    clip_CTHW = transform(squares, np.random.default_rng(3))
    cut = transforms.resize_bilinear(crops.crop_frames(squares, crops.CROPS["resized"].box(48, 48, rng)), (48, 48))
    gains_CC, offsets_C = transforms.color_map(*transforms.draw_color(rng))
    np.testing.assert_allclose(clip_CTHW, normal(cut @ gains_CC.T + offsets_C), atol=2e-5)


@pytest.mark.parametrize(("views", "lefts"), [("center", [12]), ("three", [0, 24, 12])])
def test_views_are_windows_of_the_resized_frames(frames_THWC, views, lefts):
    transform = ViewTransform(24, 36, views)
    cut_KTHWC = transform.crop(frames_THWC)
    resized = transforms.short_side_resize(frames_THWC, 36)
    assert cut_KTHWC.dtype == np.uint8
    assert np.array_equal(cut_KTHWC, [resized[:, 6:30, left : left + 24] for left in lefts])
    clip_CTHW = transform.normalize(cut_KTHWC[0])
    assert clip_CTHW.dtype == np.float32
    assert clip_CTHW.flags.c_contiguous
    np.testing.assert_allclose(clip_CTHW, normal(cut_KTHWC[0]), atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TrainTransform(0), "size is 0"),
        (lambda: TrainTransform(8, -1), "short_side -1"),
        (
            lambda: TrainTransform(crop="multiscale"),
            "unknown crop 'multiscale', choose from multiscale_5, multiscale_13",
        ),
        (lambda: TrainTransform(std=(1, 0, 1)), "std is"),
        (lambda: ViewTransform(257), r"size is 257, it must be in \[1, short_side\], and short_side is 256"),
        (lambda: ViewTransform(views="ten"), "unknown views 'ten', choose from center, three"),
        (lambda: ViewTransform(std=(1, 0, 1)), "std is"),
    ],
)
def test_mistakes_in_recognition_transforms_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


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


def test_normalisation_is_float32_arithmetic_to_the_bit(frames_THWC):
    """One multiplication and one addition in float32, also of frames that are views."""
    every_value = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    gains = (1 / np.array(IMAGENET_STD)).astype(np.float32)
    offsets = (-np.array(IMAGENET_MEAN) / np.array(IMAGENET_STD)).astype(np.float32)
    for frames in (every_value, frames_THWC, frames_THWC[:, 3:40, 5:50]):
        expected = (frames.astype(np.float32) * gains + offsets).transpose(3, 0, 1, 2)
        assert np.array_equal(ViewTransform(24, 24).normalize(frames), expected)


def test_mirrored_frames(frames_THWC):
    for frames in (frames_THWC, frames_THWC[:, 3:40, 5:50]):
        assert np.array_equal(transforms.flip_frames(frames), frames[:, :, ::-1])
