# SPDX-License-Identifier: Apache-2.0
"""What all operations on images have in common, clips, the training pipeline, and the sheet of pictures."""

import itertools
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from mindvideo.data import corruptions
from mindvideo.data.corruptions import OPERATIONS, SEVERITIES, Augmentation, corrupt_clip, random_cut
from mindvideo.data.corruptions.levels import whole_within, within
from mindvideo.errors import InputError
from mindvideo.report.sheet import picture_sheet
from tests.pictures import flat, scene

PUBLISHED = """PepperSaltNoise ColorPointNoise GaussianNoise Mosaic RGBShuffle Rotate HFlip VFlip GaussianBlur Blur
Rain Extend BlockShuffle LocalShuffle RandomPadding Fog ShotNoise ImpulseNoise SpeckleNoise GlassBlur DeFocusBlur
MotionBlur ZoomBlur Frost Snow Spatter Contrast Brightness Saturate Compress Pixelate Elastic"""
NOT_RANDOM = {
    "hflip", "vflip", "blur", "defocus_blur", "zoom_blur", "contrast", "brightness", "saturate", "compress", "pixelate",
}  # fmt: skip
ALIKE = {
    "pepper_salt_noise", "color_point_noise", "rgb_shuffle", "hflip", "vflip", "gaussian_blur", "blur", "block_shuffle",
}  # fmt: skip
# Their published levels change their nature from one to the next.
UNORDERED = {"frost", "spatter", "saturate", "elastic"}
GREY_STAYS_GREY = {
    "pepper_salt_noise", "rgb_shuffle", "rotate", "hflip", "vflip", "gaussian_blur", "blur", "rain", "extend",
    "block_shuffle", "local_shuffle", "fog", "glass_blur", "defocus_blur", "motion_blur", "zoom_blur", "snow",
    "contrast", "brightness", "compress", "pixelate", "elastic",
}  # fmt: skip

every_operation = pytest.mark.parametrize("name", OPERATIONS)


def apply(name: str, image: np.ndarray, seed: int = 0, severity: int = 3) -> np.ndarray:
    return OPERATIONS[name](image, np.random.default_rng(seed), severity)


def damage(name: str, image: np.ndarray, severity: int, seeds: int = 12) -> float:
    """Mean absolute difference over seeds."""
    before = image.astype(float)
    return float(np.mean([np.abs(apply(name, image, seed, severity) - before).mean() for seed in range(seeds)]))


def test_the_published_operations_are_there_in_their_order():
    assert [name.replace("_", "") for name in OPERATIONS] == PUBLISHED.lower().split()


@every_operation
def test_any_size_is_kept_and_the_image_given_too(name):
    for size, severity in itertools.product([(8, 8), (41, 30), (9, 70), (1, 1)], SEVERITIES):
        image = scene(*size)
        before = image.copy()
        image.flags.writeable = False
        result = apply(name, image, severity=severity)
        assert result.dtype == np.uint8
        assert result.shape == before.shape
        assert not np.shares_memory(result, image)
        np.testing.assert_array_equal(image, before)
        np.testing.assert_array_equal(apply(name, np.asfortranarray(image), severity=severity), result)


@every_operation
def test_the_generator_alone_decides(name):
    image = scene(64, 48)
    results = [apply(name, image, seed) for seed in range(6)]
    np.testing.assert_array_equal(apply(name, image, 4), results[4])
    differ = any((result != results[0]).any() for result in results)
    assert differ == (name not in NOT_RANDOM)


@pytest.mark.parametrize("name", sorted(ALIKE))
def test_operations_without_severity(name):
    image = scene(64, 48)
    for severity in SEVERITIES:
        np.testing.assert_array_equal(apply(name, image, 3, severity), apply(name, image, 3, 1))
    assert any((apply(name, image, seed) != image).any() for seed in range(6))


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ALIKE | UNORDERED])
def test_damage_grows_with_severity(name):
    damages = [damage(name, scene(224, 224), severity) for severity in SEVERITIES]
    assert np.all(np.diff(damages) > 0), damages
    assert damages[0] > 0


@pytest.mark.parametrize("name", ["frost", "spatter", "saturate"])
def test_damage_of_the_last_severity_exceeds_that_of_the_first(name):
    assert damage(name, scene(128, 128), 5) > damage(name, scene(128, 128), 1)


@every_operation
def test_grey_black_and_white_pictures(name):
    grey = np.repeat(scene(40, 40)[..., :1], 3, axis=2)
    result = apply(name, grey)
    if name in GREY_STAYS_GREY:
        np.testing.assert_array_equal(result, np.repeat(result[..., :1], 3, axis=2))
    for color in (0, 255):
        assert apply(name, flat(40, 40, color)).shape == (40, 40, 3)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ALIKE])
def test_other_severities_are_refused(name):
    for severity in (0, 6, -1):
        with pytest.raises(InputError, match=f"severity is {severity}"):
            apply(name, scene(8, 8), severity=severity)


def test_fifths_make_up_the_range():
    rng = np.random.default_rng(0)
    for severity in SEVERITIES:
        drawn = [within(10, 20, severity, rng) for _ in range(300)]
        assert 8 + 2 * severity <= min(drawn) < 8.1 + 2 * severity
        assert 9.9 + 2 * severity < max(drawn) <= 10 + 2 * severity
    whole = [whole_within(9, 3, int(rng.choice(SEVERITIES)), rng) for _ in range(7000)]
    assert np.all(np.abs(np.bincount(whole)[3:] - 1000) < 150)
    assert set(whole) == set(range(3, 10))
    assert {whole_within(9, 3, 1, rng) for _ in range(50)} == {9, 8}


@every_operation
def test_a_still_clip_stays_still(name):
    clip = np.repeat(scene(32, 40)[None], 3, axis=0)
    result = corrupt_clip(clip, name, 2, seed=5)
    assert result.shape == clip.shape
    np.testing.assert_array_equal(result, np.repeat(apply(name, clip[0], 5, 2)[None], 3, axis=0))


def test_a_moving_clip_is_changed_alike():
    clip = np.stack([flat(40, 50, 40), flat(40, 50, 90)])
    turned = corrupt_clip(clip, "rotate", 5, seed=1)
    np.testing.assert_array_equal(turned[0] == 0, turned[1] == 0)
    peppered = corrupt_clip(clip, "pepper_salt_noise", 1, seed=1)
    np.testing.assert_array_equal(peppered[0] == 255, peppered[1] == 255)
    noise = corrupt_clip(clip, "gaussian_noise", 1, seed=1).astype(int) - clip
    np.testing.assert_array_equal(noise[0], noise[1])


@pytest.mark.parametrize(
    ("frames", "name", "severity", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.uint8), "hail", 1, "unknown operation 'hail', choose from pepper_salt_noise, "),
        (np.zeros((2, 4, 4, 3), np.uint8), "hflip", 7, "severity is 7, it must be 1, 2, 3, 4 or 5"),
        (np.zeros((2, 4, 4, 3)), "fog", 1, "frames of shape .* and type float64: must be uint8"),
        (np.zeros((4, 4, 3), np.uint8), "fog", 1, "frames of shape"),
        (np.zeros((0, 4, 4, 3), np.uint8), "fog", 1, "frames of shape .* not empty"),
    ],
)
def test_mistakes_with_clips_are_named(frames, name, severity, message):
    with pytest.raises(InputError, match=message):
        corrupt_clip(frames, name, severity, seed=0)


def test_each_operation_comes_with_its_probability_and_any_severity(monkeypatch):
    seen = []

    def counting(name):
        def operation(image, rng, severity):
            seen.append((name, severity))
            return image

        return operation

    monkeypatch.setattr(corruptions, "OPERATIONS", {name: counting(name) for name in OPERATIONS})
    images, augment, rng = 4000, Augmentation(0.05), np.random.default_rng(2)
    for _ in range(images):
        augment(flat(2, 2, 0), rng)
    counts = np.array([sum(name == counted for counted, _ in seen) for name in OPERATIONS])
    assert np.all(np.abs(counts - 0.05 * images) < 4 * np.sqrt(images * 0.05 * 0.95))
    severities = np.bincount([severity for _, severity in seen], minlength=6)[1:]
    assert np.all(np.abs(severities - len(seen) / 5) < 4 * np.sqrt(len(seen) * 0.16))

    seen.clear()
    Augmentation(1.0)(flat(2, 2, 0), rng)
    assert [name for name, _ in seen] == list(OPERATIONS)
    seen.clear()
    Augmentation(1.0, ("blur", "mosaic"))(flat(2, 2, 0), rng)
    assert [name for name, _ in seen] == ["mosaic", "blur"]


def test_the_pipeline_changes_images():
    image = scene(48, 48)
    assert Augmentation(0.0)(image, np.random.default_rng(0)) is image
    flipped = Augmentation(1.0, ("vflip", "hflip"))(image, np.random.default_rng(0))
    np.testing.assert_array_equal(flipped, image[::-1, ::-1])
    augment = Augmentation(0.3)
    results = [augment(image, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(results[0], results[1])
    assert (results[0] != results[2]).any()
    assert all(result.shape == image.shape and result.dtype == np.uint8 for result in results)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probability": 1.5}, r"probability is 1.5, it must be in \[0, 1\]"),
        ({"operations": ("fog", "hail")}, "unknown operation 'hail'"),
    ],
)
def test_mistakes_with_the_pipeline_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        Augmentation(**settings)


def test_a_sheet_shows_every_picture():
    colors = {"red": (255, 0, 0), "green": (0, 255, 0), "a long $name_with": (0, 0, 255)}
    png = picture_sheet(
        {name: flat(20 + 5 * i, 30, color) for i, (name, color) in enumerate(colors.items())}, columns=2
    )
    sheet = np.asarray(Image.open(BytesIO(png)).convert("RGB"))
    height, width = sheet.shape[:2]
    for (row, column), color in zip(((0, 0), (0, 1), (1, 0)), colors.values(), strict=True):
        cell = sheet[row * height // 2 : (row + 1) * height // 2, column * width // 2 : (column + 1) * width // 2]
        assert (cell == color).all(axis=2).mean() > 0.3
    assert (sheet[height // 2 :, width // 2 :] == 255).all()


def test_a_sheet_of_all_operations():
    image = scene(48, 64)
    cut = random_cut(image, np.random.default_rng(0), 3)
    png = picture_sheet({name: apply(name, image) for name in OPERATIONS} | {"random_cut": cut})
    with Image.open(BytesIO(png)) as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 1500
