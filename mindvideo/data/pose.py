# SPDX-License-Identifier: Apache-2.0
"""Sequences of joint rotations: reading what may be anyone's file, conversion, augmentation, batches.

T frames, J = 24 joints of SMPL (Loper et al., 2015), relative to their parents. In files a rotation is an axis-angle
vector in radians, `(T, 72)`, or rotation-6D, `(T, 24, 6)`: the first two rows of its matrix (Zhou et al., CVPR 2019,
who take columns). Everywhere else it is rotation-6D in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from scipy.spatial.transform import Rotation

from mindvideo.data.stickfigure_actions import JOINTS, forward_kinematics
from mindvideo.errors import InputError

NUM_JOINTS, NUM_VALUES = 24, 6
AXIS_ANGLE_SHAPE, ROTATION6D_SHAPE = (3 * NUM_JOINTS,), (NUM_JOINTS, NUM_VALUES)
MOST_BYTES = 64 * 2**20
MOST_FRAMES = 32_768
LARGEST_ANGLE = 100.0  # radians; beyond, float32 has few digits left for what counts
LARGEST_ENTRY = 1.01  # of a rotation matrix, with room for rounding and noise

_AT_REST = np.array([1, 0, 0, 0, 1, 0], np.float32)
_HEAD = JOINTS.index("head")

FEWEST_CROPPED = 20  # frames
NOISE_STD = 1e-4

# The joint on the other side of the body, and what its rotation's six values are multiplied by, in a mirror that swaps
# left and right (x): M R M with M = diag(-1, 1, 1).
MIRROR_JOINTS = (0, 2, 1, 3, 5, 4, 6, 8, 7, 9, 11, 10, 12, 14, 13, 15, 17, 16, 19, 18, 21, 20, 23, 22)
MIRROR_SIGNS = np.array([1, -1, -1, -1, 1, 1], np.float32)


def read_pose(path: Path) -> np.ndarray:
    """The poses of an .npy file, rotation-6D `[T, 24, 6]`; InputError if it is anything else than such a file."""
    if not path.is_file():
        raise InputError(f"{path}: no such file of poses.")
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise InputError(f"{path}: {size} bytes; a file of poses has at most {MOST_BYTES}.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    return parse_pose(content, str(path))


def parse_pose(content: bytes, source: str) -> np.ndarray:
    """The poses in the bytes of an .npy file, rotation-6D `[T, 24, 6]`.

    Nothing of the content is trusted or executed: the header is checked before any memory is taken for what it
    promises. InputError, which names `source`, the value, its place and what is allowed, if the file is too large, no
    .npy file, of another shape or type than poses, cut off, or holds a number that is not finite or far out of range.
    """
    if len(content) > MOST_BYTES:
        raise InputError(f"{source}: {len(content)} bytes; a file of poses has at most {MOST_BYTES}.")
    shape, is_fortran, dtype, start = _read_header(content, source)
    is_axis_angle = shape[1:] == AXIS_ANGLE_SHAPE
    if not is_axis_angle and shape[1:] != ROTATION6D_SHAPE:
        raise InputError(
            f"{source}: an array of shape {shape}; allowed are (T, 72), axis-angle, and (T, 24, 6), rotation-6D."
        )
    if not 1 <= shape[0] <= MOST_FRAMES:
        raise InputError(f"{source}: {shape[0]} frames; allowed are 1 to {MOST_FRAMES}.")
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise InputError(f"{source}: an array of {dtype}; allowed are float16, float32 and float64.")
    promised = shape[0] * NUM_JOINTS * (3 if is_axis_angle else NUM_VALUES) * dtype.itemsize
    if len(content) - start != promised:
        raise InputError(f"{source}: {len(content) - start} bytes of data, but the header promises {promised}.")
    values = np.frombuffer(content, dtype, offset=start).reshape(shape, order="F" if is_fortran else "C")
    _check_values(values.reshape(shape[0], NUM_JOINTS, -1), LARGEST_ANGLE if is_axis_angle else LARGEST_ENTRY, source)
    if is_axis_angle:
        return axis_angle_to_rotation6d(values.reshape(-1, NUM_JOINTS, 3))
    return values.astype(np.float32)


def _read_header(content: bytes, source: str) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, whether the first axis runs fastest, type, and where the data start."""
    file = BytesIO(content)
    try:
        version = npy.read_magic(file)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, is_fortran, dtype = read(file)
    except Exception as error:  # numpy's parser raises anything on a damaged header: tokenize.TokenError, KeyError, ...
        raise InputError(f"{source}: no .npy file of numbers ({type(error).__name__}).") from error
    return shape, is_fortran, dtype, file.tell()


def _check_values(values_TJC: np.ndarray, largest: float, source: str) -> None:
    wrong = ~(np.abs(values_TJC) <= largest)  # nan is never within
    if wrong.any():
        frame, joint, place = map(int, np.argwhere(wrong)[0])
        raise InputError(
            f"{source}: frame {frame}, joint {joint} ({JOINTS[joint]}), number {place} is "
            f"{values_TJC[frame, joint, place]}; allowed are -{largest:g} to {largest:g}."
        )


def axis_angle_to_rotation6d(vectors: np.ndarray) -> np.ndarray:
    """Rotation vectors `[..., 3]` in radians to rotation-6D `[..., 6]`, float32."""
    matrices = Rotation.from_rotvec(vectors.reshape(-1, 3).astype(np.float64)).as_matrix()
    return matrices[:, :2].reshape(*vectors.shape[:-1], 6).astype(np.float32)


def rotation6d_to_axis_angle(rotations: np.ndarray) -> np.ndarray:
    """Rotation-6D `[..., 6]` to rotation vectors `[..., 3]` in radians, no longer than pi, float32.

    Rows that are not quite orthonormal are made so (Gram-Schmidt, as Zhou et al. do); none may be zero.
    """
    first, second = np.moveaxis(rotations.reshape(-1, 2, 3).astype(np.float64), 1, 0)
    first = first / np.linalg.norm(first, axis=1, keepdims=True)
    second = second - (first * second).sum(axis=1, keepdims=True) * first
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    matrices = np.stack([first, second, np.cross(first, second)], axis=1)
    return Rotation.from_matrix(matrices).as_rotvec().reshape(*rotations.shape[:-1], 3).astype(np.float32)


def joint_positions(poses_TJC: np.ndarray) -> np.ndarray:
    """Joint positions `[T, 24, 3]` of rotation-6D, in metres about the pelvis, y up.

    Six numbers that are no rotation count as none. Some recordings have y down, as cameras do: where heads are below
    pelvises on average, the figure is turned over.
    """
    first, second = poses_TJC[..., :3], poses_TJC[..., 3:]
    lengths = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    broken = np.linalg.norm(np.cross(first, second), axis=-1) <= 1e-3 * lengths
    vectors_TJ3 = rotation6d_to_axis_angle(np.where(broken[..., None], _AT_REST, poses_TJC))
    positions_TJ3 = forward_kinematics(vectors_TJ3, np.zeros((len(poses_TJC), 3)))
    if positions_TJ3[:, _HEAD, 1].mean() < 0:
        positions_TJ3[..., 1:] *= -1
    return positions_TJ3


def crop(poses_TJC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A contiguous piece at random, 5 to 100 % of the frames, but 20 at least or all that there are."""
    total = len(poses_TJC)
    length = min(total, max(FEWEST_CROPPED, int(rng.uniform(0.05, 1.0) * total)))
    start = int(rng.integers(total - length + 1))
    return poses_TJC[start : start + length]


def mirror(poses_TJC: np.ndarray) -> np.ndarray:
    """The same movement with left and right swapped."""
    return poses_TJC[:, MIRROR_JOINTS] * MIRROR_SIGNS


@dataclass(frozen=True)
class Augmentation:
    """What training changes at random: a share of the clips is cropped in time and made noisy, N(0, 1e-4^2) on all six
    values, as ActionNet's authors do, and a share is mirrored."""

    cropped: float
    mirrored: float

    def __call__(self, poses_TJC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        is_cropped, is_mirrored = rng.uniform(size=2) < (self.cropped, self.mirrored)
        if is_mirrored:
            poses_TJC = mirror(poses_TJC)
        if is_cropped:
            poses_TJC = crop(poses_TJC, rng)
            noise_TJC = rng.standard_normal(poses_TJC.shape, dtype=np.float32)
            poses_TJC = poses_TJC + np.float32(NOISE_STD) * noise_TJC
        return poses_TJC


def padded_length(num_frames: int) -> int:
    """The power of two, 32 or more, that so many frames are filled up to: few lengths, as each is a graph apart."""
    return max(32, 1 << (num_frames - 1).bit_length())


def collate(clips: Sequence[np.ndarray], num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Clips of any lengths as one batch `[B, num_frames, 24, 6]`, zeros behind their ends, and their lengths, int32."""
    batch = np.zeros((len(clips), num_frames, *ROTATION6D_SHAPE), np.float32)
    for row, clip in zip(batch, clips, strict=True):
        row[: len(clip)] = clip
    return batch, np.array([len(clip) for clip in clips], np.int32)
