# SPDX-License-Identifier: Apache-2.0
"""Which pose clips there are, and the folds in which they are tested: across performers, takes or variants.

A clip's `group` is its performer. No clip is trained on and tested in one fold, and no fold trains on the performer,
take or variant that it tests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mindvideo.data import manifest
from mindvideo.data.manifest import Sample
from mindvideo.errors import InputError


@dataclass(frozen=True)
class PoseClip(Sample):
    """A file of poses; `take` and `variant` are empty where the data set has none."""

    take: str = ""
    variant: str = ""


# The public clips of the CSIG challenge say neither; performer and side were read off the poses: c01 and c02 go
# together as one performer's two takes, and where one arm acts, c01 and c03 use the right one.
_CSIG_TAKES = {"c01": ("A", "right"), "c02": ("A", "left"), "c03": ("B", "right"), "c04": ("B", "left")}
_CSIG_FILE = re.compile(r"(a\d\d)_(c0[1-4])_\w+\.npy")
_SAMPLE_FILE = re.compile(r"v_(\w+)_(g\d+)_(c\d+)\.npy")


def csig_clips(root: Path) -> list[PoseClip]:
    """The challenge's public clips: `<root>/label.txt` with lines `<file> <label>`, and `<root>/npy_data_6d/<file>`.

    Classes are named by the files: a00, a01, ... InputError names the line that does not fit.
    """
    listing = root / "label.txt"
    if not listing.is_file():
        raise InputError(f"{listing}: no such list; data.root must be the folder that holds it and npy_data_6d.")
    clips = []
    for number, line in enumerate(listing.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        name, _, label = line.strip().partition(" ")
        found = _CSIG_FILE.fullmatch(name)
        if not found or label.strip() != str(int(found[1][1:])):
            raise InputError(f"{listing}, line {number}: {line!r} is not of the form `a03_c01_forward.npy 3`.")
        performer, variant = _CSIG_TAKES[found[2]]
        clips.append(PoseClip(root / "npy_data_6d" / name, found[1], performer, found[2], variant))
    return sorted(clips, key=lambda clip: clip.path)


def sample_clips(root: Path) -> list[PoseClip]:
    """The poses of the embedded sample: `<root>/poses/<Class>/v_<Class>_gXX_cYY.npy`, gXX being the performer."""
    clips = []
    for path in sorted((root / "poses").glob("*/*.npy")):
        found = _SAMPLE_FILE.fullmatch(path.name)
        if found:
            clips.append(PoseClip(path, found[1], found[2], found[3]))
    return clips


def csv_clips(path: Path) -> list[PoseClip]:
    """The clips of a CSV file `path,label,group`, the group being the performer (see `manifest.read_csv`)."""
    return [PoseClip(sample.path, sample.label, sample.group) for sample in manifest.read_csv(path)]


READERS: dict[str, Callable[[Path], list[PoseClip]]] = {
    "stickfigures": sample_clips, "csig": csig_clips, "csv": csv_clips,
}  # fmt: skip

# What each protocol keeps apart: leave one group (performer) out, leave one take out, leave one variant out.
PROTOCOLS: dict[str, tuple[str, Callable[[PoseClip], str]]] = {
    "logo": ("performer", lambda clip: clip.group),
    "loco": ("take", lambda clip: clip.take),
    "variant": ("variant", lambda clip: clip.variant),
}


@dataclass(frozen=True)
class Fold:
    """Places of clips by part; `name` is what is tested, such as `performer A`."""

    name: str
    train: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]


def make_folds(clips: Sequence[PoseClip], protocol: str, *, num_folds: int = 0, validation: bool = False) -> list[Fold]:
    """Each performer (`logo`), take (`loco`) or variant tested once, by those that train on the others.

    `num_folds` deals them into so many folds, 0 gives each its own. With `validation` the next fold's clips, after the
    last those of the first, are kept from training to choose the checkpoint.
    InputError if the clips do not tell, are too few for it, or a class is tested that is not trained.
    """
    what, key = PROTOCOLS[protocol]
    values = sorted({key(clip) for clip in clips})
    if "" in values:
        raise InputError(f"data.protocol {protocol}: these clips have no {what}; allowed here is logo.")
    count = num_folds or len(values)
    fewest = 3 if validation else 2
    if not fewest <= count <= len(values):
        raise InputError(
            f"data.protocol {protocol}: {len(values)} {what}s in {count} folds; there must be {fewest} folds or more"
            f"{' with data.validation' if validation else ''}, each of one {what} or more."
        )
    parts = [values[number::count] for number in range(count)]
    places = [tuple(i for i, clip in enumerate(clips) if key(clip) in part) for part in parts]
    folds = []
    for number, part in enumerate(parts):
        val = places[(number + 1) % count] if validation else ()
        kept = set(places[number] + val)
        train = tuple(i for i in range(len(clips)) if i not in kept)
        folds.append(Fold(f"{what} {', '.join(part)}", train, val, places[number]))
    _check_classes(clips, folds)
    return folds


def _check_classes(clips: Sequence[PoseClip], folds: Sequence[Fold]) -> None:
    for fold in folds:
        trained = {clips[i].label for i in fold.train}
        strange = sorted({clips[i].label for i in fold.test + fold.val} - trained)
        if strange:
            raise InputError(f"fold of {fold.name}: no training clip shows {', '.join(strange[:5])}.")
