# SPDX-License-Identifier: Apache-2.0
"""The embedded sample: motion against a brute-force skeleton, and the files against what they promise."""

import json
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from mindvideo.data import stickfigures
from mindvideo.data.stickfigure_actions import (
    JOINT_INDEX,
    JOINTS,
    PARENTS,
    REST_OFFSETS_J3,
    forward_kinematics,
    key_pose,
)
from mindvideo.data.stickfigures import CLASSES, PAIRS, SPLITS, make_sample, perform
from mindvideo.errors import InputError

FEW = ("SitDown", "StandUp", "OpenArms")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sample") / "few"
    make_sample(root, num_groups=3, classes=FEW)
    return root


def decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def rodrigues(axis_angle_3: np.ndarray) -> np.ndarray:
    angle = np.linalg.norm(axis_angle_3)
    x, y, z = axis_angle_3 / angle if angle > 0 else (0.0, 0.0, 0.0)
    cross_33 = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross_33 + (1 - np.cos(angle)) * cross_33 @ cross_33


# Motion


def test_skeleton_is_the_smpl_tree():
    assert PARENTS == (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)
    assert JOINTS[0] == "pelvis"
    assert JOINTS[15] == "head"
    assert JOINTS[22:] == ("l_hand", "r_hand")


def test_forward_kinematics_equals_a_walk_from_every_joint_to_the_root():
    rng = np.random.default_rng(0)
    rotations_TJ3 = rng.normal(size=(3, 24, 3))
    translation_T3 = rng.normal(size=(3, 3))
    positions_TJ3 = forward_kinematics(rotations_TJ3, translation_T3)
    for frame in range(3):
        for joint in range(24):
            point_3, ancestor = np.zeros(3), joint
            while ancestor > 0:
                parent = PARENTS[ancestor]
                point_3 = rodrigues(rotations_TJ3[frame, parent]) @ (REST_OFFSETS_J3[ancestor] + point_3)
                ancestor = parent
            np.testing.assert_allclose(positions_TJ3[frame, joint], point_3 + translation_T3[frame], atol=1e-12)


@pytest.mark.parametrize("action", CLASSES)
def test_bones_keep_their_length_and_the_figure_stands_on_the_floor(action: str):
    rotations_TJ3, translation_T3 = perform(action, np.random.default_rng(1))
    assert rotations_TJ3.shape == (24, 24, 3)
    positions_TJ3 = forward_kinematics(rotations_TJ3, translation_T3)
    bones_TJ = np.linalg.norm(positions_TJ3[:, 1:] - positions_TJ3[:, PARENTS[1:]], axis=-1)
    np.testing.assert_allclose(bones_TJ, np.tile(np.linalg.norm(REST_OFFSETS_J3[1:], axis=-1), (24, 1)), atol=1e-12)
    np.testing.assert_allclose(positions_TJ3[..., 1].min(axis=1), 0, atol=1e-12)


def test_the_standing_leg_of_a_kick_does_not_slide():
    positions_TJ3 = forward_kinematics(*perform("KickOut", np.random.default_rng(2)))
    np.testing.assert_allclose(positions_TJ3[:, JOINT_INDEX["l_ankle"]][:, [0, 2]], 0, atol=1e-12)


@pytest.mark.parametrize(("forward", "backward"), PAIRS)
def test_a_pair_is_one_performance_in_two_orders(forward: str, backward: str):
    phase_T = np.linspace(0, 1, 11)
    for there, back in zip(key_pose(forward, phase_T), key_pose(backward, phase_T), strict=True):
        np.testing.assert_allclose(there[::-1], back, atol=1e-10)
    for there, back in zip(
        perform(forward, np.random.default_rng(3)), perform(backward, np.random.default_rng(3)), strict=True
    ):
        np.testing.assert_array_equal(there[::-1], back)


@pytest.mark.parametrize("action", CLASSES)
def test_actions_go_far_and_never_back(action: str):
    positions_TJ3 = forward_kinematics(*perform(action, np.random.default_rng(4)))
    whole_J3 = positions_TJ3[-1] - positions_TJ3[0]
    assert np.linalg.norm(whole_J3, axis=-1).max() > 0.5
    eight_8J3 = positions_TJ3[np.linspace(0, 23, 8).round().astype(int)] - positions_TJ3[0]
    progress_8 = (eight_8J3 * whole_J3).sum(axis=(1, 2)) / (whole_J3**2).sum()
    assert (np.diff(progress_8) > -0.03).all()
    assert np.median(np.diff(progress_8)) > 0.05


# Classes


def test_splits_partition_the_classes_and_keep_pairs_together():
    assert [len(SPLITS[split]) for split in ("train", "val", "test")] == [20, 6, 6]
    assert sorted(name for members in SPLITS.values() for name in members) == list(CLASSES)
    assert len(set(CLASSES)) == 32
    assert sorted(name for pair in PAIRS for name in pair) == list(CLASSES)
    for forward, backward in PAIRS:
        assert [split for split in SPLITS if forward in SPLITS[split]] == [
            split for split in SPLITS if backward in SPLITS[split]
        ]


# Files


def test_tree_and_lists(sample: Path):
    stems = {f"{name}/v_{name}_g0{group}_c0{clip}" for name in FEW for group in (1, 2, 3) for clip in (1, 2)}
    for folder, suffix in (("videos", ".avi"), ("poses", ".npy"), ("stills", ".png")):
        found = {str(path.relative_to(sample / folder)) for path in (sample / folder).glob(f"*/*{suffix}")}
        assert found == {stem + suffix for stem in stems}
    lists = sample / "videos" / "ucfTrainTestlist"
    assert (lists / "classInd.txt").read_text() == "1 OpenArms\n2 SitDown\n3 StandUp\n"
    test = (lists / "testlist01.txt").read_text().split()
    assert set(test) == {f"{stem}.avi" for stem in stems if "_g01_" in stem}
    train = dict(line.split() for line in (lists / "trainlist01.txt").read_text().splitlines())
    assert set(train) == {f"{stem}.avi" for stem in stems} - set(test)
    assert train["SitDown/v_SitDown_g02_c01.avi"] == "2"
    assert (sample / "fewshot" / "train.txt").read_text() == "OpenArms\nSitDown\nStandUp\n"
    assert (sample / "fewshot" / "test.txt").read_text() == ""
    stamp = json.loads((sample / "sample.json").read_text())
    assert stamp == {
        "version": stickfigures.VERSION,
        "seed": 0,
        "scene_bias": 0.0,
        "classes": 3,
        "groups": 3,
        "clips": 18,
    }


def test_clips_decode_to_the_rendered_frames(sample: Path):
    for path in sorted(sample.glob("videos/*/*.avi")):
        frames_THWC = decode(path)
        assert frames_THWC.shape == (24, 96, 96, 3)
        still_HWC = np.array(Image.open(sample / "stills" / path.parent.name / f"{path.stem}.png"), dtype=float)
        assert np.abs(frames_THWC[12] - still_HWC).mean() < 4
        # The figure moves: neighbours of the still are further from it than the codec's error.
        assert np.abs(frames_THWC[2] - still_HWC).mean() > 2 * np.abs(frames_THWC[12] - still_HWC).mean()


def test_poses_are_those_of_a_pair_of_opposites(sample: Path):
    down_TJ3, up_TJ3 = (
        np.load(sample / "poses" / name / f"v_{name}_g01_c01.npy").reshape(24, 24, 3) for name in FEW[:2]
    )
    assert down_TJ3.dtype == np.float32
    knees = [JOINT_INDEX["l_knee"], JOINT_INDEX["r_knee"]]
    # On the way both squat; standing and sitting they differ by the hips, which bend by 80 degrees.
    assert np.abs(down_TJ3[12, knees, 0]).min() > 1.0
    hip_down_T, hip_up_T = (poses[:, JOINT_INDEX["l_hip"], 0] for poses in (down_TJ3, up_TJ3))
    assert abs(hip_down_T[0]) < 0.3 < 1.0 < abs(hip_down_T[-1])
    assert abs(hip_up_T[-1]) < 0.3 < 1.0 < abs(hip_up_T[0])


def test_same_seed_same_bytes_and_another_seed_another_film(tmp_path: Path):
    small = partial(make_sample, num_groups=2, clips_per_group=1)
    small(tmp_path / "a", classes=("Bow", "Unbow"))
    small(tmp_path / "b", classes=("Bow", "Unbow"))
    small(tmp_path / "c", classes=("Bow",))
    small(tmp_path / "d", classes=("Bow",), seed=1)
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) == 4 * 3 + 3 + 3 + 1
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    clip = Path("videos") / "Bow" / "v_Bow_g02_c01.avi"
    assert (tmp_path / "a" / clip).read_bytes() == (tmp_path / "c" / clip).read_bytes()
    assert (tmp_path / "c" / clip).read_bytes() != (tmp_path / "d" / clip).read_bytes()


def background(root: Path, stem: str) -> np.ndarray:
    """The colours of wall and floor at the border, where the figure hardly comes."""
    still_HWC = np.array(Image.open(root / "stills" / f"{stem}.png"), dtype=float)
    strips = still_HWC[:4, :32], still_HWC[:4, 64:], still_HWC[-4:, :32], still_HWC[-4:, 64:]
    return np.concatenate([np.median(strip, axis=(0, 1)) for strip in strips])


def background_accuracy(root: Path, classes: tuple[str, ...]) -> tuple[float, float]:
    """How often the nearest background of another training group has the class: training, test groups."""
    clips = [(name, group, clip) for name in classes for group in (1, 2, 3, 4) for clip in (1, 2)]
    features = {key: background(root, "{0}/v_{0}_g{1:02d}_c{2:02d}".format(*key)) for key in clips}

    def nearest_class(query: tuple[str, int, int]) -> str:
        others = [key for key in clips if key[1] != 1 and key[1] != query[1]]
        return min(others, key=lambda key: float(np.abs(features[key] - features[query]).sum()))[0]

    hits = {key: nearest_class(key) == key[0] for key in clips}
    train, test = [hits[key] for key in clips if key[1] != 1], [hits[key] for key in clips if key[1] == 1]
    return float(np.mean(train)), float(np.mean(test))


def test_scene_bias_ties_background_to_class_in_training_groups_only(tmp_path: Path):
    classes = tuple(name for pair in PAIRS[:4] for name in pair)
    for scene_bias in (0.0, 1.0):
        make_sample(tmp_path / str(scene_bias), scene_bias=scene_bias, num_groups=4, classes=classes)
    free_train, free_test = background_accuracy(tmp_path / "0.0", classes)
    tied_train, tied_test = background_accuracy(tmp_path / "1.0", classes)
    assert free_train < 0.3
    assert free_test < 0.4
    assert tied_train > 0.95
    assert tied_test < 0.4


# Making it


def test_an_interrupted_run_leaves_nothing(tmp_path: Path):
    def interrupt(done: int, total: int) -> None:
        assert total == 2
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_sample(tmp_path / "s", num_groups=2, clips_per_group=1, classes=("Bow",), progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_the_slower_of_two_makers_gives_way(tmp_path: Path):
    root = tmp_path / "s"
    make = partial(make_sample, root, num_groups=2, clips_per_group=1, classes=("Bow",))

    def finish_elsewhere(done: int, total: int) -> None:
        if done == total:
            make()
            (root / "first").touch()

    make(progress=finish_elsewhere)
    assert (root / "first").is_file()
    assert list(tmp_path.iterdir()) == [root]


def test_ensure_sample_films_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINDVIDEO_CACHE", str(tmp_path))
    monkeypatch.setattr(
        stickfigures, "make_sample", partial(make_sample, num_groups=2, clips_per_group=1, classes=("Bow",))
    )
    calls = []
    roots = [
        stickfigures.ensure_sample(seed=3, scene_bias=0.5, progress=lambda *done: calls.append(done)) for _ in range(2)
    ]
    assert calls == [(1, 2), (2, 2)]
    assert roots == [stickfigures.sample_root(3, 0.5)] * 2
    assert roots[0].parent == tmp_path
    assert roots[0] != stickfigures.sample_root(3, 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed=-1"),
        ({"scene_bias": 1.5}, "scene_bias=1.5"),
        ({"num_groups": 1}, "num_groups=1"),
        ({"clips_per_group": 0}, "clips_per_group=0"),
        ({"classes": ("Bow", "Jump")}, "Jump"),
        ({"classes": ("Bow", "Bow")}, "Bow, Bow"),
    ],
)
def test_wrong_arguments_are_named(tmp_path: Path, arguments: dict, message: str):
    with pytest.raises(InputError, match=message):
        make_sample(tmp_path / "s", **arguments)


def test_a_folder_in_use_and_an_unknown_action_are_refused(tmp_path: Path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(InputError, match="not empty"):
        make_sample(tmp_path)
    with pytest.raises(InputError, match="'Jump'"):
        perform("Jump", np.random.default_rng(0))
