# SPDX-License-Identifier: Apache-2.0
"""Files of poses, honest and hostile; conversions and augmentation against scipy; the folds of the protocols."""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mindvideo.data import pose
from mindvideo.data.pose import (
    Augmentation,
    axis_angle_to_rotation6d,
    collate,
    crop,
    joint_positions,
    mirror,
    padded_length,
    parse_pose,
    read_pose,
    rotation6d_to_axis_angle,
)
from mindvideo.data.pose_sets import PoseClip, csig_clips, csv_clips, make_folds, sample_clips
from mindvideo.data.stickfigure_actions import JOINTS, REST_OFFSETS_J3, forward_kinematics
from mindvideo.errors import InputError

RNG = np.random.default_rng(0)


def angles(num_frames: int = 4) -> np.ndarray:
    return RNG.uniform(-2, 2, (num_frames, 72)).astype(np.float32)


def encoded(array: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def with_header(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode()
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + data


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_both_layouts_are_read_in_every_kind_of_number(dtype, order):
    vectors = angles(5).astype(dtype)
    matrices = Rotation.from_rotvec(vectors.reshape(-1, 3).astype(np.float64)).as_matrix()
    expected = matrices[:, :2].reshape(5, 24, 6)
    for array in (vectors, expected.astype(dtype)):
        poses = parse_pose(encoded(np.asarray(array, order=order)), "x.npy")
        assert (poses.dtype, poses.shape) == (np.float32, (5, 24, 6))
        np.testing.assert_allclose(poses, expected, atol=1e-3 if dtype == "<f2" else 1e-6)


def test_a_file_is_read_as_its_bytes(tmp_path):
    vectors = angles()
    np.save(tmp_path / "a.npy", vectors)
    np.testing.assert_array_equal(read_pose(tmp_path / "a.npy"), axis_angle_to_rotation6d(vectors.reshape(4, 24, 3)))


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


F4 = "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }\n"
HOSTILE = {
    "pickle": (encoded(np.array([Bomb()], dtype=object), allow_pickle=True), "shape (1,)"),
    "pickle of poses' shape": (
        with_header("{'descr': '|O', 'fortran_order': False, 'shape': (1, 72), }\n", pickle.dumps([Bomb()] * 72)),
        "an array of object; allowed are float16, float32 and float64",
    ),
    "bare pickle": (pickle.dumps(Bomb()), "no .npy file"),
    "empty": (b"", "no .npy file"),
    "zip": (b"PK\x03\x04" + bytes(60), "no .npy file"),
    "text": (b"frame,joint\n1,2\n", "no .npy file"),
    "half a header": (encoded(angles())[:40], "no .npy file"),
    "later version": (with_header(F4 % "(1, 72)", bytes(288), b"\x09\x00"), "no .npy file"),
    "code in the header": (with_header("__import__('os').abort()"), "no .npy file"),
    "endless header": (with_header("(" * 60_000), "no .npy file"),
    "cut off": (encoded(angles())[:-1], "1151 bytes of data, but the header promises 1152"),
    "too long": (encoded(angles()) + b"\0", "1153 bytes of data, but the header promises 1152"),
    "a promise of exabytes": (with_header(F4 % f"({10**17}, 72)"), f"{10**17} frames; allowed are 1 to 32768"),
    "a negative length": (with_header(F4 % "(-1, 72)"), "-1 frames"),
    "no frame": (encoded(angles(0)), "0 frames"),
    "other joints": (encoded(RNG.normal(size=(4, 75))), "shape (4, 75); allowed are (T, 72), axis-angle, and (T, 24"),
    "one pose": (encoded(RNG.normal(size=72)), "shape (72,)"),
    "matrices": (encoded(RNG.normal(size=(4, 24, 3, 3))), "shape (4, 24, 3, 3)"),
    "integers": (encoded(np.zeros((4, 72), int)), "an array of int64"),
    "complex": (encoded(np.zeros((4, 72), complex)), "an array of complex128"),
    "long floats": (encoded(np.zeros((4, 72), np.longdouble)), "an array of float128"),
    "records": (encoded(np.zeros((4, 72), [("a", "f4")])), "an array of [('a', '<f4')]"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_one_sentence(name):
    content, message = HOSTILE[name]
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        parse_pose(content, "upload.npy")
    assert str(caught.value).startswith("upload.npy: ")


@pytest.mark.parametrize(
    ("value", "shape", "message"),
    [
        (np.nan, (4, 72), "frame 2, joint 16 (l_shoulder), number 1 is nan; allowed are -100 to 100"),
        (-np.inf, (4, 72), "number 1 is -inf"),
        (101.0, (4, 72), "number 1 is 101.0; allowed are -100 to 100"),
        (1.5, (4, 24, 6), "frame 2, joint 16 (l_shoulder), number 1 is 1.5; allowed are -1.01 to 1.01"),
        (np.nan, (4, 24, 6), "number 1 is nan"),
    ],
)
def test_a_number_that_cannot_be_is_named_with_its_place(value, shape, message):
    array = RNG.uniform(-0.5, 0.5, shape).astype(np.float32)
    array.reshape(4, 24, -1)[2, 16, 1] = value
    with pytest.raises(InputError, match=re.escape(message)):
        parse_pose(encoded(array), "x.npy")


def test_a_large_double_does_not_pass_as_infinity():
    with pytest.raises(InputError, match=r"number 0 is 1e\+300"):
        parse_pose(encoded(np.full((1, 72), 1e300)), "x.npy")


def test_too_large_a_file_is_not_read(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", angles())
    monkeypatch.setattr(pose, "MOST_BYTES", 1000)
    monkeypatch.setattr(Path, "read_bytes", None)
    with pytest.raises(InputError, match="1280 bytes; a file of poses has at most 1000"):
        read_pose(tmp_path / "a.npy")
    with pytest.raises(InputError, match="1280 bytes; a file of poses has at most 1000"):
        parse_pose(encoded(angles()), "upload")


def test_what_is_no_file_is_named(tmp_path):
    for path in (tmp_path / "absent.npy", tmp_path):
        with pytest.raises(InputError, match="no such file of poses"):
            read_pose(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    np.save(tmp_path / "a.npy", angles())
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(InputError, match=r"a\.npy: cannot be read \(Permission denied\)"):
        read_pose(tmp_path / "a.npy")


def test_no_damage_gets_through_as_anything_but_an_input_error():
    """Random bytes changed, cut and inserted in a good file: it is poses, or one sentence."""
    good, outcomes = encoded(angles()), set()
    for _ in range(1500):
        content = bytearray(good)
        for _ in range(RNG.integers(1, 4)):
            place = int(RNG.integers(140 if RNG.uniform() < 0.9 else len(content)))
            match RNG.integers(3):
                case 0:
                    content[place] = int(RNG.integers(256))
                case 1:
                    del content[place : place + int(RNG.integers(1, 9))]
                case _:
                    content[place:place] = RNG.bytes(int(RNG.integers(1, 9)))
        try:
            poses = parse_pose(bytes(content), "x")
            assert poses.shape[1:] == (24, 6)
            assert np.isfinite(poses).all()
            outcomes.add("poses")
        except InputError:
            outcomes.add("refused")
    assert outcomes == {"poses", "refused"}


def test_conversion_there_and_back():
    vectors = RNG.normal(size=(200, 24, 3))
    vectors *= RNG.uniform(1e-9, 3.1, (200, 24, 1)) / np.linalg.norm(vectors, axis=-1, keepdims=True)
    rotations = axis_angle_to_rotation6d(vectors)
    assert rotations.shape == (200, 24, 6)
    np.testing.assert_allclose(rotation6d_to_axis_angle(rotations), vectors, atol=2e-4)
    stretched = rotations * RNG.uniform(0.5, 2, (200, 24, 1)).astype(np.float32)
    np.testing.assert_allclose(rotation6d_to_axis_angle(stretched), vectors, atol=2e-4)
    skewed = rotations.copy()
    skewed[..., 3:] += 0.3 * rotations[..., :3]
    np.testing.assert_allclose(rotation6d_to_axis_angle(skewed), vectors, atol=2e-4)


def test_small_and_large_angles_are_exact():
    """A turn by a about x has the rows 1 0 0 and 0 cos(a) -sin(a)."""
    for angle in (0.0, 1e-12, 1e-7, 1.0, np.pi, 4.0, 20.0):
        expected = [1, 0, 0, 0, np.cos(angle), -np.sin(angle)]
        np.testing.assert_allclose(axis_angle_to_rotation6d(np.array([angle, 0, 0])), expected, atol=1e-7)


def test_a_mirrored_body_stands_where_the_mirror_image_stands():
    """The joints' places from mirrored rotations are the places of the other side's joints with x turned round."""
    vectors = RNG.normal(0, 0.6, (5, 24, 3))
    mirrored = rotation6d_to_axis_angle(mirror(axis_angle_to_rotation6d(vectors)))
    other = {"l_": "r_", "r_": "l_"}
    swapped = [JOINTS.index(other.get(name[:2], name[:2]) + name[2:]) for name in JOINTS]
    assert tuple(swapped) == pose.MIRROR_JOINTS
    bones = (REST_OFFSETS_J3 + REST_OFFSETS_J3[swapped] * (-1, 1, 1)) / 2
    places, images = (forward_kinematics(v.astype(float), np.zeros((5, 3)), bones) for v in (vectors, mirrored))
    np.testing.assert_allclose(images, places[:, swapped] * (-1, 1, 1), atol=1e-5)
    np.testing.assert_array_equal(mirror(mirror(axis_angle_to_rotation6d(vectors))), axis_angle_to_rotation6d(vectors))


def test_a_crop_is_a_piece_of_at_least_twenty_frames():
    clip = np.arange(100.0)[:, None, None]
    pieces = [crop(clip, RNG)[:, 0, 0] for _ in range(3000)]
    lengths = np.array([len(piece) for piece in pieces])
    assert all((np.diff(piece) == 1).all() for piece in pieces)
    assert (lengths.min(), lengths.max()) == (20, 99)
    assert (lengths == 20).mean() == pytest.approx(16 / 95, abs=0.025)
    assert lengths[lengths > 20].mean() == pytest.approx(60, abs=1.5)
    of_twenty = [piece[0] for piece in pieces if len(piece) == 20]
    assert (min(of_twenty), max(of_twenty)) == (0, 80)
    assert crop(clip[:7], RNG).shape == (7, 1, 1)


def test_augmentation_changes_the_shares_it_is_told():
    clip = axis_angle_to_rotation6d(RNG.normal(size=(60, 24, 3)))
    untouched = Augmentation(0, 0)(clip, RNG)
    np.testing.assert_array_equal(untouched, clip)
    np.testing.assert_array_equal(Augmentation(0, 1)(clip, RNG), mirror(clip))
    augment = Augmentation(cropped=0.5, mirrored=0.25)
    results = [augment(clip, RNG) for _ in range(2000)]
    assert all(result.dtype == np.float32 for result in results)
    whole = [result for result in results if len(result) == 60]
    assert len(whole) / 2000 == pytest.approx(0.5, abs=0.04)
    plain = [(result == clip).all() for result in whole]
    assert np.mean(plain) == pytest.approx(0.75, abs=0.05)


def test_noise_has_the_published_size():
    clip = np.zeros((400, 24, 6), np.float32)
    noise = Augmentation(cropped=1, mirrored=0)(clip, RNG)
    assert noise.std() == pytest.approx(1e-4, rel=0.03)
    assert abs(noise.mean()) < 3e-6


def test_a_batch_is_filled_up_with_zeros():
    clips = [RNG.normal(size=(n, 24, 6)).astype(np.float32) for n in (3, 5, 1)]
    batch, lengths = collate(clips, 8)
    assert (batch.shape, lengths.dtype, lengths.tolist()) == ((3, 8, 24, 6), np.int32, [3, 5, 1])
    for row, clip in zip(batch, clips, strict=True):
        np.testing.assert_array_equal(row[: len(clip)], clip)
        assert not row[len(clip) :].any()
    assert [padded_length(n) for n in (1, 32, 33, 820, 1024, 1026)] == [32, 32, 64, 1024, 1024, 2048]


def clips_of(performers: int, takes: int, labels: str = "ab") -> list[PoseClip]:
    return [
        PoseClip(Path(f"{label}{p}{t}.npy"), label, f"p{p}", f"c{t}", "right" if t % 2 else "left")
        for label in labels
        for p in range(performers)
        for t in range(takes)
    ]


@pytest.mark.parametrize(
    ("protocol", "names"),
    [
        ("logo", ["performer p0", "performer p1", "performer p2"]),
        ("loco", ["take c0", "take c1", "take c2", "take c3"]),
        ("variant", ["variant left", "variant right"]),
    ],
)
def test_folds_test_every_clip_once_and_never_what_they_train(protocol, names):
    clips = clips_of(3, 4)
    key = {"logo": "group", "loco": "take", "variant": "variant"}[protocol]
    folds = make_folds(clips, protocol)
    assert [fold.name for fold in folds] == names
    assert sorted(i for fold in folds for i in fold.test) == list(range(len(clips)))
    for fold in folds:
        assert sorted(fold.train + fold.test) == list(range(len(clips)))
        trained, tested = ({getattr(clips[i], key) for i in part} for part in (fold.train, fold.test))
        assert trained.isdisjoint(tested)
        assert fold.val == ()


def test_validation_is_the_next_fold_and_trained_in_neither():
    clips = clips_of(7, 2)
    folds = make_folds(clips, "logo", num_folds=3, validation=True)
    assert [fold.name for fold in folds] == ["performer p0, p3, p6", "performer p1, p4", "performer p2, p5"]
    for fold, following in zip(folds, [*folds[1:], folds[0]], strict=True):
        assert fold.val == following.test
        assert sorted(fold.train + fold.val + fold.test) == list(range(len(clips)))


@pytest.mark.parametrize(
    ("clips", "options", "message"),
    [
        (clips_of(1, 2), {}, "1 performers in 1 folds; there must be 2 folds or more, each"),
        (clips_of(2, 2), {"validation": True}, "2 performers in 2 folds; there must be 3 folds or more with data.vali"),
        (clips_of(3, 2), {"num_folds": 4}, "3 performers in 4 folds"),
        (clips_of(3, 2), {"num_folds": 1}, "3 performers in 1 folds"),
        ([PoseClip(Path("a"), "a", "p")] * 2, {"protocol": "loco"}, "these clips have no take; allowed here is logo"),
        ([*clips_of(2, 1), PoseClip(Path("x"), "c", "p0")], {}, "fold of performer p0: no training clip shows c"),
    ],
)
def test_folds_that_cannot_be_are_refused(clips, options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        make_folds(clips, **({"protocol": "logo"} | options))


def test_the_challenge_s_list_says_performer_take_and_side(tmp_path):
    (tmp_path / "label.txt").write_text("a06_c04_forward.npy 6\n\na03_c01_forward.npy 3\n")
    folder = tmp_path / "npy_data_6d"
    assert csig_clips(tmp_path) == [
        PoseClip(folder / "a03_c01_forward.npy", "a03", "A", "c01", "right"),
        PoseClip(folder / "a06_c04_forward.npy", "a06", "B", "c04", "left"),
    ]
    for line in ("a06_c04_forward.npy 7", "a06_c05_forward.npy 6", "../a06_c04_forward.npy 6", "a06_c04_forward.npy"):
        (tmp_path / "label.txt").write_text(f"a03_c01_forward.npy 3\n{line}\n")
        with pytest.raises(InputError, match=r"label.txt, line 2: .* is not of the form"):
            csig_clips(tmp_path)
    with pytest.raises(InputError, match=r"no such list; data\.root must be the folder"):
        csig_clips(folder)


def test_the_sample_s_names_say_performer_and_take(tmp_path):
    for name in ("v_Bow_g02_c01.npy", "v_Bow_g01_c02.npy", "notes.npy"):
        (tmp_path / "poses" / "Bow").mkdir(parents=True, exist_ok=True)
        (tmp_path / "poses" / "Bow" / name).touch()
    found = [(clip.label, clip.group, clip.take, clip.variant) for clip in sample_clips(tmp_path)]
    assert found == [("Bow", "g01", "c02", ""), ("Bow", "g02", "c01", "")]


def test_a_csv_file_names_clips_and_performers(tmp_path):
    (tmp_path / "mine.csv").write_text("path,label,group\na.npy,wave,anna\nb.npy,nod,\n")
    found = [(clip.path, clip.label, clip.group) for clip in csv_clips(tmp_path / "mine.csv")]
    assert found == [(tmp_path / "a.npy", "wave", "anna"), (tmp_path / "b.npy", "nod", "b.npy")]


def test_real_clips_are_rotations(real_data):
    clips = csig_clips(real_data / "csig_angles")
    assert len(clips) == 40
    for clip in clips[::8]:
        rows = read_pose(clip.path).reshape(-1, 2, 3).astype(np.float64)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=2), 1, atol=1e-6)
        np.testing.assert_allclose((rows[:, 0] * rows[:, 1]).sum(axis=1), 0, atol=1e-6)


def test_joint_positions_of_what_is_no_rotation_are_those_at_rest():
    rest = np.tile(np.array([1, 0, 0, 0, 1, 0], np.float32), (3, 24, 1))
    broken = rest.copy()
    broken[1, 4] = 0.0
    broken[2, 7] = [1, 0, 0, 2, 0, 0]  # rows that are parallel
    expected = joint_positions(rest)
    assert expected.shape == (3, 24, 3)
    assert expected[:, 15, 1].min() > 0.3  # the head
    np.testing.assert_allclose(joint_positions(broken), expected, atol=1e-6)
