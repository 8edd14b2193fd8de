# SPDX-License-Identifier: Apache-2.0
"""How the figure of the embedded sample moves: a 24-joint body and 16 pairs of opposite actions.

The joints, their order and their tree are those of SMPL (Loper et al., 2015); the bone lengths are our own.
Space is metric and right-handed: y points up from the floor at y = 0, and at rest the figure faces +z with
its arms stretched sideways and its left side towards +x.

An action is a short list of key poses. The two actions of a pair are one performance run forwards and
backwards, so they show the same set of poses, and only their order tells which one it is.

Shapes: T frames, J = 24 joints.
"""

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.spatial.transform import Rotation

from mindvideo.errors import InputError

NUM_FRAMES = 24

# name, parent, offset from the parent in metres at rest (left-side bones; the right side mirrors x).
_TREE = (
    ("pelvis", "", (0, 0, 0)),
    ("l_hip", "pelvis", (0.10, -0.07, 0)),
    ("r_hip", "pelvis", (-0.10, -0.07, 0)),
    ("spine1", "pelvis", (0, 0.11, 0)),
    ("l_knee", "l_hip", (0.01, -0.41, 0)),
    ("r_knee", "r_hip", (-0.01, -0.41, 0)),
    ("spine2", "spine1", (0, 0.13, 0)),
    ("l_ankle", "l_knee", (0, -0.40, -0.01)),
    ("r_ankle", "r_knee", (0, -0.40, -0.01)),
    ("spine3", "spine2", (0, 0.07, 0)),
    ("l_foot", "l_ankle", (0.02, -0.05, 0.15)),
    ("r_foot", "r_ankle", (-0.02, -0.05, 0.15)),
    ("neck", "spine3", (0, 0.21, 0)),
    ("l_collar", "spine3", (0.08, 0.13, 0)),
    ("r_collar", "spine3", (-0.08, 0.13, 0)),
    ("head", "neck", (0, 0.12, 0.02)),
    ("l_shoulder", "l_collar", (0.11, 0.02, 0)),
    ("r_shoulder", "r_collar", (-0.11, 0.02, 0)),
    ("l_elbow", "l_shoulder", (0.28, 0, 0)),
    ("r_elbow", "r_shoulder", (-0.28, 0, 0)),
    ("l_wrist", "l_elbow", (0.26, 0, 0)),
    ("r_wrist", "r_elbow", (-0.26, 0, 0)),
    ("l_hand", "l_wrist", (0.09, 0, 0)),
    ("r_hand", "r_wrist", (-0.09, 0, 0)),
)
JOINTS = tuple(name for name, _, _ in _TREE)
JOINT_INDEX = {name: index for index, name in enumerate(JOINTS)}
PARENTS = tuple(JOINT_INDEX.get(parent, -1) for _, parent, _ in _TREE)
REST_OFFSETS_J3 = np.array([offset for _, _, offset in _TREE], dtype=np.float64)

# A pose lists joints with Euler angles x y z in degrees, applied as Ry Rx Rz; those left out stand at ease.
# "arms" (at the shoulders), "elbows", "hips", "knees" and "ankles" set both sides, "back" three joints alike.
# Every limb is written as if it were a left one: the right side mirrors y and z. So on either side
#   arm     x < 0 swings a lowered arm forwards, z > 0 lifts it above level, y < 0 closes it to the front
#   elbow   y < 0 bends
#   hip     x < 0 lifts the thigh to the front, z > 0 to the side
#   knee    x > 0 bends
#   back    x > 0 bends forwards, y > 0 twists to the left, z > 0 leans to the right
#   pelvis  the same for the whole body
_AT_EASE = "arms 0 0 -78, elbows 0 -12 0, hips 0 0 3"


@dataclass(frozen=True)
class _Motion:
    """The performance behind one pair of actions.

    `keys` are spread evenly over the phase, and so is `path_m`: places on the floor, (x, z) in metres, that
    the mean of the `anchor` joints passes. With one place throughout, an anchored foot does not slide.
    """

    forward: str
    backward: str
    keys: tuple[str, ...]
    path_m: tuple[tuple[float, float], ...] = ((0.0, 0.0), (0.0, 0.0))
    anchor: tuple[str, ...] = ("l_ankle", "r_ankle")


_TRAIN_MOTIONS = (
    _Motion(
        "RaiseArms",
        "LowerArms",
        (
            "",
            "arms 0 0 76, elbows 0 -5 0, back -8 0 0",
        ),
    ),
    _Motion(
        "OpenArms",
        "CloseArms",
        (
            "arms 0 -88 -2, back 12 0 0",
            "arms 0 22 12, back -12 0 0",
        ),
    ),
    _Motion(
        "ThrowForward",
        "PullBack",
        (
            (
                "r_arm -160 0 -50, r_elbow 0 -80 0, l_arm -80 0 -80, back -20 -45 0, "
                "r_hip 18 0 8, l_hip -32 0 5, pelvis 0 25 0"
            ),
            (
                "r_arm -55 0 -85, r_elbow 0 -5 0, l_arm 40 0 -70, back 45 35 0, "
                "r_hip 25 0 8, l_hip -50 0 5, l_knee 45 0 0, pelvis 10 25 0"
            ),
        ),
        anchor=("l_foot", "r_foot"),
    ),
    _Motion(
        "KickOut",
        "KickBack",
        (
            "r_hip 38 0 3, r_knee 65 0 0, back 22 0 0, r_arm -55 0 -65, l_arm 35 0 -60, pelvis 0 25 0",
            "r_hip -105 0 3, back -12 0 0, r_arm 35 0 -50, l_arm -65 0 -65, pelvis -8 25 0",
        ),
        anchor=("l_ankle",),
    ),
    _Motion(
        "KneelDown",
        "KneelUp",
        (
            "",
            "hips -32 0 4, knees 75 0 0, ankles 25 0 0, arms -30 0 -79, elbows 0 -55 0",
            "hips -4 0 4, knees 94 0 0, ankles 45 0 0, arms -50 0 -80, elbows 0 -95 0",
        ),
    ),
    _Motion(
        "SitDown",
        "StandUp",
        (
            "",
            "pelvis 15 0 0, back 20 0 0, hips -110 0 8, knees 115 0 0",
            "pelvis -14 0 0, hips -80 0 12, knees 8 0 0, arms 32 0 -60, elbows 0 0 0",
        ),
        path_m=((0, 0.1), (0, 0.15), (0, 0.4)),
    ),
    _Motion(
        "Bow",
        "Unbow",
        (
            "",
            "pelvis 42 0 0, hips -42 0 3, back 66 0 0, arms -62 0 -82, head 15 0 0",
        ),
    ),
    _Motion(
        "LieDown",
        "GetUp",
        (
            "pelvis 0 50 0",
            "pelvis 5 50 0, back 20 0 0, hips -110 0 8, knees 115 0 0",
            "pelvis -25 50 0, hips -70 0 5, knees 40 0 0, arms 35 0 -65",
            "pelvis -88 50 0, hips 0 0 5, arms 0 0 -55",
        ),
        path_m=((0.5, 0.38), (0.5, 0.38), (0.55, 0.42), (0.6, 0.46)),
    ),
    _Motion(
        "TurnLeft",
        "TurnRight",
        (
            "pelvis 0 -135 0, arms -78 0 -78",
            "pelvis 0 -87 0, arms -78 0 -78, l_knee 35 0 0",
            "pelvis 0 -40 0, arms -78 0 -78, r_knee 35 0 0",
            "pelvis 0 7 0, arms -78 0 -78, l_knee 35 0 0",
            "pelvis 0 55 0, arms -78 0 -78",
        ),
    ),
    _Motion(
        "StepLeft",
        "StepRight",
        (
            "",
            "hips 0 0 24, arms 0 0 -48",
            "",
            "hips 0 0 24, arms 0 0 -48",
            "",
        ),
        path_m=((-0.48, 0), (0.48, 0)),
    ),
)
_VAL_MOTIONS = (
    _Motion(
        "Crouch",
        "Rise",
        (
            "",
            (
                "pelvis 28 0 0, back 45 0 0, hips -138 0 14, knees 135 0 0, "
                "ankles -22 0 0, arms -75 0 -78, elbows 0 -60 0"
            ),
        ),
    ),
    _Motion(
        "LiftKnee",
        "LowerKnee",
        (
            "",
            "r_hip -112 0 3, r_knee 108 0 0, l_arm -75 0 -78, l_elbow 0 -70 0, r_arm 45 0 -75",
        ),
        anchor=("l_ankle",),
    ),
    _Motion(
        "RaiseHand",
        "LowerHand",
        (
            "",
            "r_arm -12 0 82, r_elbow 0 0 0, back 0 0 16",
        ),
    ),
)
_TEST_MOTIONS = (
    _Motion(
        "PickUp",
        "PutDown",
        (
            "pelvis 45 0 0, back 50 0 0, hips -95 0 10, knees 70 0 0, arms -80 0 -82",
            "pelvis 8 0 0, hips -25 0 6, knees 25 0 0, arms -70 0 -80, elbows 0 -60 0",
            "arms -152 0 -80, back -12 0 0",
        ),
    ),
    _Motion(
        "RaiseLeg",
        "LowerLeg",
        (
            "",
            "r_hip 0 0 82, arms 0 0 0, back 0 0 -24",
        ),
        anchor=("l_ankle",),
    ),
    _Motion(
        "PushOut",
        "PullIn",
        (
            "arms 48 0 -72, elbows 0 -125 0, back -14 0 0, pelvis 0 25 0",
            ("arms -92 0 -80, elbows 0 0 0, back 16 0 0, pelvis 6 25 0, l_hip -38 0 3, l_knee 30 0 0, r_hip 20 0 3"),
        ),
        path_m=((-0.15, -0.22), (-0.15, -0.22)),
        anchor=("r_foot",),
    ),
)
_MOTIONS = _TRAIN_MOTIONS + _VAL_MOTIONS + _TEST_MOTIONS

PAIRS = tuple((motion.forward, motion.backward) for motion in _MOTIONS)
CLASSES = tuple(sorted(name for pair in PAIRS for name in pair))
SPLITS = {
    split: tuple(sorted(name for motion in motions for name in (motion.forward, motion.backward)))
    for split, motions in (("train", _TRAIN_MOTIONS), ("val", _VAL_MOTIONS), ("test", _TEST_MOTIONS))
}
_BY_NAME = {
    name: (motion, name == motion.backward) for motion in _MOTIONS for name in (motion.forward, motion.backward)
}


def _joint_angles(pose: str) -> np.ndarray:
    """The Euler angles in degrees [J, 3] of a pose, in each joint's own axes."""
    angles_J3 = np.zeros((len(JOINTS), 3))
    for entry in f"{_AT_EASE}, {pose}".strip(", ").split(", "):
        name, *xyz = entry.replace("arm", "shoulder").split()
        if name == "back":
            for joint in ("spine1", "spine2", "spine3"):
                angles_J3[JOINT_INDEX[joint]] = np.array(xyz, dtype=float) / 3
        elif name in JOINT_INDEX:
            angles_J3[JOINT_INDEX[name]] = xyz
        else:
            angles_J3[[JOINT_INDEX[f"{side}_{name[:-1]}"] for side in "lr"]] = xyz
    angles_J3[[joint.startswith("r_") for joint in JOINTS], 1:] *= -1
    return angles_J3


def _check_action(action: str) -> tuple[_Motion, bool]:
    if action not in _BY_NAME:
        raise InputError(f"unknown action {action!r}; choose from {', '.join(CLASSES)}")
    return _BY_NAME[action]


def key_pose(action: str, phase_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ideal pose of an action at phases in [0, 1].

    Returns Euler angles in degrees [T, J, 3] and the anchor's place on the floor in metres [T, 2]. An action
    and its opposite are one curve read from both ends: key_pose(a, phase) equals key_pose(b, 1 - phase).
    """
    motion, backwards = _check_action(action)
    phase_T = 1 - phase_T if backwards else phase_T
    keys_KJ3 = np.stack([_joint_angles(pose) for pose in motion.keys])
    angles_TJ3 = PchipInterpolator(np.linspace(0, 1, len(keys_KJ3)), keys_KJ3)(phase_T)
    path_T2 = PchipInterpolator(np.linspace(0, 1, len(motion.path_m)), np.array(motion.path_m))(phase_T)
    return angles_TJ3, path_T2


def forward_kinematics(
    rotations_TJ3: np.ndarray, translation_T3: np.ndarray, offsets_J3: np.ndarray = REST_OFFSETS_J3
) -> np.ndarray:
    """Joint positions in metres [T, J, 3] from axis-angle rotations relative to the parent, in radians.

    `translation_T3` is the place of the pelvis; `offsets_J3` are the bones at rest.
    """
    frames = len(rotations_TJ3)
    local_TJ33 = Rotation.from_rotvec(rotations_TJ3.reshape(-1, 3)).as_matrix().reshape(frames, -1, 3, 3)
    world_TJ33 = local_TJ33.copy()
    positions_TJ3 = np.empty_like(rotations_TJ3, dtype=np.float64)
    positions_TJ3[:, 0] = translation_T3
    for joint, parent in enumerate(PARENTS[1:], start=1):
        world_TJ33[:, joint] = world_TJ33[:, parent] @ local_TJ33[:, joint]
        positions_TJ3[:, joint] = positions_TJ3[:, parent] + world_TJ33[:, parent] @ offsets_J3[joint]
    return positions_TJ3


def _draw_phase(rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """A monotone run from 0 to 1 with a wait before and after, up to a seventh of the clip each.

    Its distribution is the same forwards and backwards, so that timing does not give the direction away.
    """
    wait_before, wait_after = rng.uniform(0, 1 / 7, size=2)
    phase_T = np.clip((np.linspace(0, 1, num_frames) - wait_before) / (1 - wait_before - wait_after), 0, 1)
    eased_T = phase_T * phase_T * (3 - 2 * phase_T)
    softness = rng.uniform(0, 0.6)
    return softness * eased_T + (1 - softness) * phase_T


def perform(
    action: str,
    rng: np.random.Generator,
    *,
    offsets_J3: np.ndarray = REST_OFFSETS_J3,
    num_frames: int = NUM_FRAMES,
) -> tuple[np.ndarray, np.ndarray]:
    """One performance: its own speed, waits, amplitude and small unsteadiness, drawn from `rng`.

    Returns SMPL axis-angle rotations in radians [T, J, 3] and the place of the pelvis in metres [T, 3]. From
    the same state of `rng`, the two actions of a pair give the same performance in opposite orders.
    """
    motion, backwards = _check_action(action)
    angles_TJ3, path_T2 = key_pose(motion.forward, _draw_phase(rng, num_frames))
    at_ease_J3 = _joint_angles(_AT_EASE)
    angles_TJ3 = at_ease_J3 + rng.uniform(0.9, 1.06) * (angles_TJ3 - at_ease_J3)
    shape = (len(JOINTS), 3)
    habit_J3, sway_J3 = rng.normal(0, 1.8, size=shape), rng.normal(0, 1.2, size=shape)
    start_J3, pace_J3 = rng.uniform(0, 2 * np.pi, size=shape), rng.uniform(2, 7, size=shape)
    time_T11 = np.linspace(0, 1, num_frames)[:, None, None]
    angles_TJ3 += habit_J3 + sway_J3 * np.sin(start_J3 + pace_J3 * time_T11)

    euler_yxz = angles_TJ3[..., [1, 0, 2]].reshape(-1, 3)
    rotations_TJ3 = Rotation.from_euler("YXZ", euler_yxz, degrees=True).as_rotvec().reshape(angles_TJ3.shape)
    centred_TJ3 = forward_kinematics(rotations_TJ3, np.zeros((num_frames, 3)), offsets_J3)
    translation_T3 = -centred_TJ3[:, [JOINT_INDEX[joint] for joint in motion.anchor]].mean(axis=1)
    translation_T3[:, [0, 2]] += path_T2
    # Gravity: whatever is lowest, a foot, a knee or the back, touches the floor.
    translation_T3[:, 1] = -centred_TJ3[:, :, 1].min(axis=1)
    return (rotations_TJ3[::-1], translation_T3[::-1]) if backwards else (rotations_TJ3, translation_T3)
