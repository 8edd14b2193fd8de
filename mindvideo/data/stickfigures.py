# SPDX-License-Identifier: Apache-2.0
"""The embedded sample: an articulated figure acts, and the film is written as a UCF101-style data set.

32 classes in 16 pairs; the two of a pair differ only in the order of their poses (stickfigure_actions.py).
As in UCF101, a group gXX is one actor in front of one scene; here every class is performed in every group. So
no frame tells the two of a pair apart, and backgrounds say nothing about the class.

`scene_bias` changes the latter. With that probability, drawn for every clip, the group's scene is replaced
by one from a pool that has one scene per class: in the training groups (those of trainlist01) by the scene of
its class, in the test groups by that of a class drawn at random. So both parts show the scenes of the pool
equally often, but only in the training groups do they give the class away.

    <root>/videos/<Class>/v_<Class>_gXX_cYY.avi   24 frames of 96 x 96 at 12 frames a second, MPEG-4 part 2
    <root>/videos/ucfTrainTestlist/               classInd, trainlist01, testlist01: closed set by group
    <root>/poses/<Class>/v_<Class>_gXX_cYY.npy    (24, 72) float32: SMPL axis-angle rotations in radians
    <root>/stills/<Class>/v_<Class>_gXX_cYY.png   the middle frame
    <root>/fewshot/{train,val,test}.txt           class splits, pairs kept together
    <root>/sample.json                            version, seed, scene_bias and counts

Shapes: T frames, J joints, N points, H = W = 96 pixels, C = RGB.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mindvideo.data.datasets import cache_folder
from mindvideo.data.stickfigure_actions import (
    CLASSES,
    JOINT_INDEX,
    JOINTS,
    NUM_FRAMES,
    PAIRS,
    REST_OFFSETS_J3,
    SPLITS,
    forward_kinematics,
    perform,
)
from mindvideo.data.video import write_video
from mindvideo.errors import InputError

__all__ = [
    "CLASSES",
    "PAIRS",
    "SPLITS",
    "Actor",
    "Camera",
    "draw_actor",
    "draw_camera",
    "ensure_sample",
    "make_sample",
    "paint_scene",
    "perform",
    "render",
    "sample_root",
]

VERSION = 1
FRAME_SIZE = 96
FPS = 12

# Drawn at twice the size and averaged down: smoother edges, and motion below one pixel stays visible.
_ZOOM = 2
_CANVAS = _ZOOM * FRAME_SIZE
_MARGIN = 24
_SUBPIXEL_BITS = 4
_OUTLINE = 2
_OUTLINE_RGB = (28, 24, 34)
_FLOOR_ORIGIN = (48, 87)
_CAMERA_PITCH = np.radians(9)


@dataclass(frozen=True)
class Actor:
    """Bones at rest [J, 3] in metres, a factor on limb thickness, and the RGB colour of each part."""

    offsets: np.ndarray
    girth: float
    colours: dict[str, tuple[int, int, int]]


@dataclass(frozen=True)
class Camera:
    """Turn about the vertical in radians, pixels per metre, and where the floor's origin appears [T, 2]."""

    yaw: float
    scale: float
    origin: np.ndarray


@dataclass(frozen=True)
class _Part:
    """Thick strokes (from point, to point, radius in metres) drawn as one shape."""

    colour: str
    strokes: tuple[tuple[str, str, float], ...]
    outline: int = _OUTLINE


def _limbs(side: str) -> tuple[_Part, ...]:
    hip, knee, ankle, foot = (f"{side}_{name}" for name in ("hip", "knee", "ankle", "foot"))
    shoulder, elbow, wrist, hand = (f"{side}_{name}" for name in ("shoulder", "elbow", "wrist", "hand"))
    return (
        _Part(f"{side}_trousers", ((hip, knee, 0.088), (knee, ankle, 0.068))),
        _Part(f"{side}_shoes", ((ankle, foot, 0.062),)),
        _Part(f"{side}_sleeves", ((shoulder, elbow, 0.062),)),
        _Part(f"{side}_skin", ((elbow, wrist, 0.05), (wrist, hand, 0.062))),
    )


_PARTS = (
    *_limbs("l"),
    *_limbs("r"),
    _Part(
        "shirt",
        (
            ("l_shoulder", "r_shoulder", 0.06),
            ("l_shoulder", "spine1", 0.08),
            ("r_shoulder", "spine1", 0.08),
            ("neck", "spine1", 0.11),
            ("pelvis", "spine1", 0.12),
        ),
    ),
    _Part("trousers", (("l_hip", "r_hip", 0.09),)),
    _Part("skin", (("neck", "head", 0.055),)),
    _Part("hair", (("skull", "skull", 0.115),)),
    _Part("skin", (("face", "face", 0.083),), outline=0),
)
_POINT_INDEX = {name: index for index, name in enumerate((*JOINTS, "skull", "face"))}


def _rng(*key: int) -> np.random.Generator:
    """One independent stream per key, so that no clip depends on the order in which they are made."""
    return np.random.default_rng(key)


def _hsv(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    """8-bit RGB of a colour with all three components in [0, 1]; the hue wraps around."""
    pixel = np.array([[[hue % 1 * 179, saturation * 255, value * 255]]], dtype=np.uint8)
    red, green, blue = cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0].tolist()
    return red, green, blue


def draw_actor(rng: np.random.Generator) -> Actor:
    """A person at random: bone lengths within 12 %, build, skin and clothes; the right side is darker."""
    offsets_J3 = REST_OFFSETS_J3.copy()
    for part in (("hip",), ("knee", "ankle"), ("elbow", "wrist"), ("shoulder", "collar"), ("spine", "neck")):
        members = [any(name in joint for name in part) for joint in JOINTS]
        offsets_J3[members] *= rng.uniform(0.88, 1.12)
    shirt_hue = rng.uniform()
    trousers_hue = shirt_hue + rng.uniform(0.25, 0.75)
    shirt = (shirt_hue, rng.uniform(0.65, 0.9), rng.uniform(0.8, 1.0))
    palette = {
        "shirt": shirt,
        "sleeves": shirt,
        "trousers": (trousers_hue, rng.uniform(0.5, 0.85), rng.uniform(0.55, 0.9)),
        "skin": (rng.uniform(0.04, 0.075), rng.uniform(0.3, 0.55), rng.uniform(0.65, 1.0)),
        "hair": (rng.uniform(0.02, 0.1), rng.uniform(0.3, 0.8), rng.uniform(0.12, 0.5)),
        "shoes": (rng.uniform(), rng.uniform(0.1, 0.6), rng.uniform(0.25, 0.95)),
    }
    colours = {name: _hsv(*hsv) for name, hsv in palette.items()}
    for name, (hue, saturation, value) in palette.items():
        colours[f"l_{name}"] = _hsv(hue, saturation, value)
        colours[f"r_{name}"] = _hsv(hue, saturation, 0.68 * value)
    return Actor(offsets_J3, girth=rng.uniform(0.9, 1.15), colours=colours)


def paint_scene(rng: np.random.Generator) -> np.ndarray:
    """A backdrop at random, uint8 RGB, wider than the canvas by a margin: wall, pattern, floor, furniture.

    Colours stay pale, so that the figure, which is saturated and outlined, stands out.
    """
    size = _CANVAS + 2 * _MARGIN
    horizon = _MARGIN + int(rng.uniform(0.6, 0.8) * _CANVAS)
    hue, saturation, value = rng.uniform(), rng.uniform(0.05, 0.35), rng.uniform(0.45, 0.92)
    top_light, bottom_light = rng.permutation([0.82, 1.08])
    ramp_S11 = np.linspace(top_light, bottom_light, size)[:, None, None]
    wall_S1C = np.clip(ramp_S11 * np.array(_hsv(hue, saturation, value)), 0, 255)
    scene_SSC = wall_S1C.astype(np.uint8).repeat(size, axis=1)

    accent = _hsv(hue + rng.normal(0, 0.08), saturation, value * rng.uniform(0.75, 0.92))
    pitch = int(rng.integers(20, 56))
    pattern = rng.choice(["plain", "stripes", "shelves", "tiles", "clouds"])
    if pattern in ("stripes", "tiles"):
        for left in range(int(rng.integers(pitch)), size, 2 * pitch):
            cv2.rectangle(scene_SSC, (left, 0), (left + pitch, size), accent, cv2.FILLED)
    if pattern in ("shelves", "tiles"):
        for top in range(int(rng.integers(pitch)), size, 2 * pitch):
            cv2.rectangle(scene_SSC, (0, top), (size, top + pitch // 2), accent, cv2.FILLED)
    if pattern == "clouds":
        clouds_SS = cv2.resize(rng.normal(0, 14, size=(7, 7)), (size, size), interpolation=cv2.INTER_CUBIC)
        scene_SSC = np.clip(scene_SSC + clouds_SS[..., None], 0, 255).astype(np.uint8)

    for _ in range(rng.integers(0, 4)):
        width, height = rng.integers(30, 80), rng.integers(30, 100)
        left = rng.integers(-20, size - 20)
        bottom = horizon if rng.uniform() < 0.5 else rng.integers(_MARGIN + 40, horizon - 20)
        colour = _hsv(rng.uniform(), rng.uniform(0.1, 0.4), rng.uniform(0.4, 0.9))
        corners = (int(left), int(bottom - height)), (int(left + width), int(bottom))
        cv2.rectangle(scene_SSC, *corners, colour, cv2.FILLED)
        cv2.rectangle(scene_SSC, *corners, _hsv(hue, saturation, 0.6 * value), 3)

    floor = _hsv(hue + rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.35), rng.uniform(0.4, 0.85))
    depth_S11 = np.linspace(rng.uniform(0.75, 0.95), 1, size - horizon)[:, None, None]
    scene_SSC[horizon:] = depth_S11 * np.array(floor)
    return scene_SSC


def draw_camera(group_rng: np.random.Generator, clip_rng: np.random.Generator, num_frames: int = NUM_FRAMES) -> Camera:
    """Where a group is filmed from, moved a little for each clip, drifting by under a pixel within it."""
    yaw = np.radians(group_rng.uniform(26, 50) + clip_rng.uniform(-4, 4))
    scale = group_rng.uniform(36, 41) * clip_rng.uniform(0.97, 1.03)
    place_2 = _FLOOR_ORIGIN + group_rng.uniform((-5, -3), (5, 3)) + clip_rng.uniform((-3, -1.5), (3, 1.5))
    start_2, pace_2 = clip_rng.uniform((0, 2), (2 * np.pi, 6), size=(2, 2)).T
    time_T1 = np.linspace(0, 1, num_frames)[:, None]
    return Camera(yaw, scale, place_2 + 0.6 * np.sin(start_2 + pace_2 * time_T1))


def _project(points_TN3: np.ndarray, camera: Camera) -> np.ndarray:
    """Canvas x and y in pixels and nearness to the camera in metres, [T, N, 3], seen slightly from above."""
    x, y, z = np.moveaxis(points_TN3, -1, 0)
    right = x * np.cos(camera.yaw) + z * np.sin(camera.yaw)
    forward = z * np.cos(camera.yaw) - x * np.sin(camera.yaw)
    up = y * np.cos(_CAMERA_PITCH) - forward * np.sin(_CAMERA_PITCH)
    origin_x_T1, origin_y_T1 = camera.origin.T[..., None]
    across = _ZOOM * (origin_x_T1 + camera.scale * right)
    down = _ZOOM * (origin_y_T1 - camera.scale * up)
    return np.stack([across, down, forward * np.cos(_CAMERA_PITCH) + y * np.sin(_CAMERA_PITCH)], axis=-1)


def _with_head(joints_TJ3: np.ndarray) -> np.ndarray:
    """The points of `_POINT_INDEX`: the joints, the middle of the skull and of the face, [T, J + 2, 3]."""
    side_T3 = joints_TJ3[:, JOINT_INDEX["l_shoulder"]] - joints_TJ3[:, JOINT_INDEX["r_shoulder"]]
    up_T3 = joints_TJ3[:, JOINT_INDEX["head"]] - joints_TJ3[:, JOINT_INDEX["neck"]]
    ahead_T3 = np.cross(side_T3, up_T3)
    up_T3 = up_T3 / np.linalg.norm(up_T3, axis=-1, keepdims=True)
    ahead_T3 /= np.linalg.norm(ahead_T3, axis=-1, keepdims=True)
    skull_T3 = joints_TJ3[:, JOINT_INDEX["head"]] + 0.09 * up_T3
    face_T3 = skull_T3 + 0.06 * ahead_T3 - 0.03 * up_T3
    return np.concatenate([joints_TJ3, skull_T3[:, None], face_T3[:, None]], axis=1)


def _draw_strokes(
    canvas: np.ndarray,
    part: _Part,
    points_N3: np.ndarray,
    colour: tuple[int, ...],
    scale: float,
    rim: int = 0,
) -> None:
    """Fill a part with one colour; `scale` is in canvas pixels per metre and `rim` widens it, in pixels."""
    fixed_N2 = np.rint(points_N3[:, :2] * 2**_SUBPIXEL_BITS).astype(int)
    for start, stop, radius in part.strokes:
        first, last = fixed_N2[[_POINT_INDEX[start], _POINT_INDEX[stop]]].tolist()
        width = round(2 * (radius * scale + rim))
        cv2.line(canvas, first, last, colour, width, lineType=cv2.LINE_AA, shift=_SUBPIXEL_BITS)


def _draw_figure(canvas: np.ndarray, points_N3: np.ndarray, actor: Actor, scale: float) -> None:
    """The parts of the body from the farthest to the nearest, each outlined and filled."""

    def nearness(part: _Part) -> float:
        ends = [_POINT_INDEX[name] for start, stop, _ in part.strokes for name in (start, stop)]
        return float(points_N3[ends, 2].mean())

    for part in sorted(_PARTS, key=nearness):
        _draw_strokes(canvas, part, points_N3, _OUTLINE_RGB, scale * actor.girth, rim=part.outline)
        _draw_strokes(canvas, part, points_N3, actor.colours[part.colour], scale * actor.girth)


def render(
    rotations_TJ3: np.ndarray, translation_T3: np.ndarray, actor: Actor, scene: np.ndarray, camera: Camera
) -> np.ndarray:
    """Film a performance, as `perform` returns it for this actor's bones: uint8 RGB frames [T, H, W, C]."""
    points_TN3 = _with_head(forward_kinematics(rotations_TJ3, translation_T3, actor.offsets))
    # The light falls slantwise from above: the higher a point, the further off its shadow lies on the floor.
    shadow_TN3 = points_TN3 * (1, 0, 1) + points_TN3[..., 1:2] * (0.22, 0, -0.12)
    figure_TN3, shadow_TN3 = _project(points_TN3, camera), _project(shadow_TN3, camera)
    scale = _ZOOM * camera.scale
    # Panning moves the backdrop along with the floor.
    corner_T2 = np.rint(_MARGIN - _ZOOM * (camera.origin - _FLOOR_ORIGIN)).astype(int)
    shaded_scene = cv2.convertScaleAbs(scene, alpha=0.62)

    frames = []
    for figure_N3, shadow_N3, (left, top) in zip(figure_TN3, shadow_TN3, corner_T2, strict=True):
        view = slice(top, top + _CANVAS), slice(left, left + _CANVAS)
        mask = np.zeros((_CANVAS, _CANVAS), dtype=np.uint8)
        for part in _PARTS:
            _draw_strokes(mask, part, shadow_N3, (255,), scale)
        canvas = cv2.copyTo(shaded_scene[view], mask, scene[view].copy())
        _draw_figure(canvas, figure_N3, actor, scale)
        frames.append(cv2.resize(canvas, (FRAME_SIZE, FRAME_SIZE), interpolation=cv2.INTER_AREA))
    return np.stack(frames)


def _num_test_groups(num_groups: int) -> int:
    """The share of UCF101, whose groups 1 to 7 of 25 test."""
    return max(1, round(num_groups * 7 / 25))


def _write_clips(
    tree: Path,
    seed: int,
    scene_bias: float,
    num_groups: int,
    clips_per_group: int,
    classes: Sequence[str],
    progress: Callable[[int, int], None] | None,
) -> None:
    # The number after the seed names a stream: 0 actors, 1 group scenes, 2 class scenes, 3 cameras, 4 clips.
    groups = range(1, num_groups + 1)
    actors = {group: draw_actor(_rng(seed, 0, group)) for group in groups}
    group_scenes = {group: paint_scene(_rng(seed, 1, group)) for group in groups}
    class_scenes = {name: paint_scene(_rng(seed, 2, CLASSES.index(name))) for name in classes}
    clips = [(name, group, clip) for name in classes for group in groups for clip in range(1, clips_per_group + 1)]
    for folder in (tree / "videos", tree / "poses", tree / "stills"):
        for name in classes:
            (folder / name).mkdir(parents=True)

    for done, (name, group, clip) in enumerate(clips, start=1):
        rng = _rng(seed, 4, CLASSES.index(name), group, clip)
        actor = actors[group]
        rotations_TJ3, translation_T3 = perform(name, rng, offsets_J3=actor.offsets)
        camera = draw_camera(_rng(seed, 3, group), rng)
        biased, anyone = rng.uniform() < scene_bias, classes[rng.integers(len(classes))]
        shown_class = anyone if group <= _num_test_groups(num_groups) else name
        scene = class_scenes[shown_class] if biased else group_scenes[group]
        frames_THWC = render(rotations_TJ3, translation_T3, actor, scene, camera)

        stem = f"{name}/v_{name}_g{group:02d}_c{clip:02d}"
        write_video(tree / "videos" / f"{stem}.avi", frames_THWC, fps=FPS, codec="mpeg4")
        np.save(tree / "poses" / f"{stem}.npy", rotations_TJ3.reshape(NUM_FRAMES, -1).astype(np.float32))
        Image.fromarray(frames_THWC[NUM_FRAMES // 2]).save(tree / "stills" / f"{stem}.png", optimize=True)
        if progress is not None:
            progress(done, len(clips))


def _write_lists(tree: Path, num_groups: int, clips_per_group: int, classes: Sequence[str]) -> None:
    lists = tree / "videos" / "ucfTrainTestlist"
    lists.mkdir()
    numbers = {name: number for number, name in enumerate(sorted(classes), start=1)}
    (lists / "classInd.txt").write_text("".join(f"{number} {name}\n" for name, number in numbers.items()))
    train, test = [], []
    for name, number in numbers.items():
        for group in range(1, num_groups + 1):
            for clip in range(1, clips_per_group + 1):
                path = f"{name}/v_{name}_g{group:02d}_c{clip:02d}.avi"
                if group <= _num_test_groups(num_groups):
                    test.append(f"{path}\n")
                else:
                    train.append(f"{path} {number}\n")
    (lists / "trainlist01.txt").write_text("".join(train))
    (lists / "testlist01.txt").write_text("".join(test))

    (tree / "fewshot").mkdir()
    for split, members in SPLITS.items():
        chosen = "".join(f"{name}\n" for name in members if name in numbers)
        (tree / "fewshot" / f"{split}.txt").write_text(chosen)


def make_sample(
    root: Path,
    *,
    seed: int = 0,
    scene_bias: float = 0.0,
    num_groups: int = 10,
    clips_per_group: int = 2,
    classes: Sequence[str] = CLASSES,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Film the sample into the new folder `root`, as the module docstring lays it out.

    It is built beside `root` and renamed when complete: an interrupted run leaves no `root`, and of two
    processes that make the same one, the slower throws its copy away. `progress` is told the clips done and
    the clips in all. Raises InputError when an argument is out of range or `root` already holds something.
    """
    if seed < 0 or not 0 <= scene_bias <= 1 or not 2 <= num_groups <= 99 or not 1 <= clips_per_group <= 99:
        raise InputError(
            f"the sample got seed={seed}, scene_bias={scene_bias}, num_groups={num_groups}, "
            f"clips_per_group={clips_per_group}; allowed are seed >= 0, scene_bias in 0..1, "
            "num_groups in 2..99 and clips_per_group in 1..99"
        )
    unknown = sorted(set(classes) - set(CLASSES))
    if unknown or not classes or len(set(classes)) < len(classes):
        raise InputError(f"classes must be different names out of {', '.join(CLASSES)}, not {', '.join(classes)}")
    if root.exists() and any(root.iterdir()):
        raise InputError(f"{root} is not empty; the sample goes into a new folder")

    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as scratch:
        tree = Path(scratch) / root.name
        _write_clips(tree, seed, scene_bias, num_groups, clips_per_group, classes, progress)
        _write_lists(tree, num_groups, clips_per_group, classes)
        stamp = {
            "version": VERSION,
            "seed": seed,
            "scene_bias": scene_bias,
            "classes": len(classes),
            "groups": num_groups,
            "clips": len(classes) * num_groups * clips_per_group,
        }
        (tree / "sample.json").write_text(json.dumps(stamp, indent=2) + "\n")
        try:
            tree.rename(root)
        except OSError:
            if not (root / "sample.json").is_file():
                raise


def sample_root(seed: int = 0, scene_bias: float = 0.0) -> Path:
    """Where `ensure_sample` keeps this sample: under $MINDVIDEO_CACHE, or else ~/.cache/mindvideo."""
    return cache_folder() / f"stickfigures-v{VERSION}-seed{seed}-bias{scene_bias:g}"


def ensure_sample(seed: int = 0, scene_bias: float = 0.0, progress: Callable[[int, int], None] | None = None) -> Path:
    """The folder of the full sample, filmed on first use (under a minute) and found there later."""
    root = sample_root(seed, scene_bias)
    if not (root / "sample.json").is_file():
        make_sample(root, seed=seed, scene_bias=scene_bias, progress=progress)
    return root
