# SPDX-License-Identifier: Apache-2.0
"""What a classifier says of every video of a data set, kept in one .npz file: what all open-set experiments read.

N videos, K known classes, C features. Arrays of the file:

    classes        [K]     names of the known classes
    label_names    [L]     names of the classes that the videos show: `classes` again, or those of an unknown set
    labels         [N]     of each video, its place in `label_names`
    videos groups  [N]     path of each video, and the source that it was cut from
    logits         [N, K]  mean over the views
    probabilities  [N, K]  of the known classes
    features       [N, C]  pooled, mean over the views
    uncertainty/NAME [N]   by every score of `metrics/uncertainty.py` that the method has; larger is less known
    model_hash data_hash   of the weights, and of the videos
    settings               JSON: name of the run, method, model, and how videos were seen
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindvideo.errors import InputError

UNCERTAINTY = "uncertainty/"


@dataclass
class Scores:
    """The arrays of a file; see above."""

    classes: list[str]
    label_names: list[str]
    labels: np.ndarray
    videos: list[str]
    groups: list[str]
    logits: np.ndarray
    probabilities: np.ndarray
    features: np.ndarray
    uncertainties: dict[str, np.ndarray]
    model_hash: str
    data_hash: str
    settings: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write the file whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {
            "classes": np.array(self.classes), "label_names": np.array(self.label_names), "labels": self.labels,
            "videos": np.array(self.videos), "groups": np.array(self.groups), "logits": self.logits,
            "probabilities": self.probabilities, "features": self.features,
            "model_hash": np.array(self.model_hash), "data_hash": np.array(self.data_hash),
            "settings": np.array(json.dumps(self.settings, sort_keys=True)),
        }  # fmt: skip
        arrays |= {UNCERTAINTY + name: values for name, values in self.uncertainties.items()}
        unfinished = path.with_name(f"{path.stem}.unfinished.npz")
        np.savez_compressed(unfinished, **arrays)
        unfinished.replace(path)


def load_scores(path: Path) -> Scores:
    """Read and check a file; InputError if it is missing, no such file, or holds a number that is none."""
    arrays = read_arrays(path)
    wanted = ("classes", "label_names", "labels", "videos", "groups", "logits", "probabilities", "features")
    lacking = [key for key in (*wanted, "model_hash", "data_hash", "settings") if key not in arrays]
    if lacking:
        raise InputError(f"{path}: no file of scores, it has no array {lacking[0]!r}.")
    uncertainties = {k.removeprefix(UNCERTAINTY): v for k, v in arrays.items() if k.startswith(UNCERTAINTY)}
    num_videos, num_classes = len(arrays["labels"]), len(arrays["classes"])
    for key in ("logits", "probabilities"):
        if arrays[key].shape != (num_videos, num_classes):
            raise InputError(
                f"{path}: {key} have shape {arrays[key].shape}, "
                f"but there are {num_videos} videos and {num_classes} known classes."
            )
    for key, values in [(k, arrays[k]) for k in ("videos", "groups", "features")] + list(uncertainties.items()):
        if len(values) != num_videos:
            raise InputError(f"{path}: {key} has {len(values)} entries for {num_videos} videos.")
    labels = arrays["labels"].astype(np.int64)
    if num_videos and not (labels.min() >= 0 and labels.max() < len(arrays["label_names"])):
        raise InputError(f"{path}: a label lies outside the {len(arrays['label_names'])} names of labels.")
    lists = {key: arrays[key].tolist() for key in ("classes", "label_names", "videos", "groups")}
    return Scores(
        **lists, labels=labels, logits=arrays["logits"], probabilities=arrays["probabilities"],
        features=arrays["features"], uncertainties=uncertainties, model_hash=str(arrays["model_hash"]),
        data_hash=str(arrays["data_hash"]), settings=json.loads(str(arrays["settings"])),
    )  # fmt: skip


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file; InputError if it is missing, damaged, or holds numbers that are not finite."""
    if not path.is_file():
        raise InputError(f"{path}: no such file of scores.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read as .npz: {error}") from None
    for key, values in arrays.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            place = np.argwhere(~np.isfinite(np.atleast_1d(values)))[0].tolist()
            raise InputError(f"{path}: array {key!r} holds {np.atleast_1d(values)[tuple(place)]} at {place}.")
    return arrays
