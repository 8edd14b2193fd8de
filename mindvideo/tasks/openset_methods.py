# SPDX-License-Identifier: Apache-2.0
"""The methods that open-set experiments compare: what each says of the test videos of known and of unknown classes.

They come from a run's folder of scores (`openset_scores`), or from a result file of DEAR's `ood_detection.py`. Unknown
classes that a network knows after all are found by name: the protocol `published` counts them as unknown all the same,
as DEAR did, and `clean` leaves them out. N videos, K known and C unknown classes.
"""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from mindvideo.config import REPOSITORY
from mindvideo.errors import InputError
from mindvideo.metrics.openmax import OpenMax
from mindvideo.metrics.openset import OpennessCurve, open_set_counts, openness_curve, rejects, threshold_keeping
from mindvideo.tasks.openset_scores import Scores, load_scores, read_arrays

Protocol = Literal["published", "clean", "both"]

OVERLAP = REPOSITORY / "data" / "splits" / "openset" / "ucf101_hmdb51_overlap.csv"
# Result files number their classes. HMDB51's, in alphabetical order, that PSL (CVPR 2023) takes from UCF101's unknown:
HMDB51_KNOWN = {
    15: "golf", 26: "pullup", 29: "pushup", 30: "ride_bike", 31: "ride_horse", 34: "shoot_ball", 35: "shoot_bow",
    43: "swing_baseball",
}  # fmt: skip


@dataclass
class Videos:
    """Videos as a method sees them: true and predicted class, uncertainty, and largest probability of a known class,
    each `[N]`; `sources` `[N]` are what they were cut from, and `probabilities` `[N, K]` may be lacking."""

    labels: np.ndarray
    predicted: np.ndarray
    uncertainty: np.ndarray
    confidence: np.ndarray
    sources: np.ndarray
    probabilities: np.ndarray | None = None

    def select(self, chosen_N: np.ndarray, labels: np.ndarray) -> Videos:
        """The chosen videos, under other labels."""
        arrays = {key: values[chosen_N] for key, values in vars(self).items() if values is not None}
        return replace(self, **arrays | {"labels": labels})


@dataclass
class Method:
    """A classifier with one uncertainty score, tested on known and on unknown classes.

    Labels are places in `known_classes` and `unknown_classes`. A video is rejected if its uncertainty lies above
    `threshold`, which `threshold_from` explains; there may be none. `also_known` has the places of unknown classes that
    are known after all, with what they show, and is None where the classes have no names to tell by.
    """

    name: str
    score: str
    unknown_set: str
    known: Videos
    unknown: Videos
    known_classes: list[str]
    unknown_classes: list[str]
    threshold: float | None
    threshold_from: str
    train_uncertainty: np.ndarray | None
    val_uncertainty: np.ndarray | None
    also_known: dict[int, str] | None
    doubtful: list[str]
    protocol: str = "published"

    @property
    def title(self) -> str:
        """What a legend calls it."""
        return f"{self.name}, {self.score}"

    @property
    def unknown_title(self) -> str:
        """The unknown set, and how many classes of it there are."""
        number = len(self.unknown_classes)
        return f"{self.unknown_set}, {number} class{'es' if number != 1 else ''}".removeprefix(", ")

    @functools.cached_property
    def hits(self) -> np.ndarray:
        """Whether the class of each known video is right, bool `[N]`."""
        return self.known.predicted == self.known.labels

    def rejected(self, videos: Videos) -> np.ndarray:
        """Whether each video is taken for unknown, bool `[N]`; InputError without a threshold."""
        if self.threshold is None:
            raise InputError(f"{self.title}: no threshold, {self.threshold_from}.")
        return rejects(videos.uncertainty, self.threshold)

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """Videos `[K + C, K + 1]` by true class and by predicted class or rejection."""
        return open_set_counts(
            self.known.labels, self.known.predicted, self.rejected(self.known),
            self.unknown.labels, self.unknown.predicted, self.rejected(self.unknown),
            num_known=len(self.known_classes), num_unknown=len(self.unknown_classes),
        )  # fmt: skip

    @functools.cached_property
    def openness(self) -> OpennessCurve:
        """Macro-F1 by the number of unknown classes."""
        return openness_curve(self.counts)


def load_methods(
    source: Path, *, name: str = "", score: str = "", unknown: str = "", threshold: float | None = None
) -> list[Method]:
    """A method for each set of unknown videos and each score of a run, a folder of scores or a result file.

    `score` is one of its scores, `all`, or empty for the method's own; `openmax` is made on the training videos.
    `unknown` names one set of a folder. `threshold` replaces the one that keeps 95 % of the training videos, or the
    file's. InputError for what is missing or does not fit.
    """
    if threshold is not None and score == "all":
        raise InputError("--threshold goes with one score; uncertainties of several have different scales.")
    if source.suffix == ".npz":
        methods = _read_result(source, name or source.stem, score)
    else:
        scores = source / "scores" if (source / "scores").is_dir() else source
        run = scores.resolve().parent if scores.resolve().name == "scores" else scores.resolve()
        methods = _read_folder(scores, name or run.name, score, unknown)
    if threshold is not None:
        methods = [replace(method, threshold=threshold, threshold_from="as given") for method in methods]
    return methods


def by_protocol(methods: Sequence[Method], protocol: Protocol) -> list[Method]:
    """Each method by the protocols asked for; by `both` twice if there are classes to leave out and others to keep.

    InputError where `clean` is asked for and cannot be had.
    """
    chosen = []
    for method in methods:
        if protocol != "clean":
            chosen.append(method)
        if protocol == "clean" or (protocol == "both" and method.also_known and _is_unknown(method).any()):
            chosen.append(clean(method))
    return chosen


def clean(method: Method) -> Method:
    """The method on those unknown classes alone that are not known; InputError if none is left, or nothing tells."""
    if method.also_known is None:
        raise InputError(f"{method.name}: its classes have no names, so only --protocol published is possible.")
    chosen_M = _is_unknown(method)
    if not chosen_M.any():
        raise InputError(f"{method.name}: all unknown classes are known, so only --protocol published is possible.")
    kept = [place for place in range(len(method.unknown_classes)) if place not in method.also_known]
    unknown = method.unknown.select(chosen_M, np.searchsorted(kept, method.unknown.labels[chosen_M]))
    classes = [method.unknown_classes[place] for place in kept]
    return replace(method, unknown=unknown, unknown_classes=classes, protocol="clean")


def _is_unknown(method: Method) -> np.ndarray:
    """Whether an unknown video shows a class that is not known after all, bool `[M]`."""
    return ~np.isin(method.unknown.labels, list(method.also_known or ()))


def shared_classes(known: Sequence[str], unknown: Sequence[str]) -> tuple[dict[int, str], list[str]]:
    """Places of unknown classes that some known ones show, and the unknown classes of which that is doubtful, both
    with these known ones in brackets.

    Names are the same if they differ in case, punctuation and a plural s alone; a list has pairs of UCF101 and HMDB51.
    """
    rows = csv.DictReader(line for line in OVERLAP.read_text(encoding="utf-8").splitlines() if line[0] != "#")
    why = {(_key(row["known"]), _key(row["unknown"])): row["why"] for row in rows}
    sure, doubtful = {}, []
    for place, name in enumerate(unknown):
        reasons = {other: why.get((_key(other), _key(name)), _key(other) == _key(name)) for other in known}
        same = [other for other, reason in reasons.items() if reason and reason != "doubtful"]
        perhaps = [other for other, reason in reasons.items() if reason == "doubtful"]
        if same:
            sure[place] = f"{name} ({', '.join(same)})"
        elif perhaps:
            doubtful.append(f"{name} ({', '.join(perhaps)})")
    return sure, doubtful


@functools.cache
def _key(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold()).removesuffix("s") or name


def _chosen(path: Path, score: str, default: str, present: Sequence[str]) -> list[str]:
    """The scores to take of those that are there, the default first; InputError with their names for another one."""
    if score == "all":
        return sorted(present, key=lambda name: name != default)
    if (score or default) not in present:
        raise InputError(f"{path}: it has no score {score or default!r}; there are: {', '.join(present)}.")
    return [score or default]


# Folders of scores


def own_score(scores: Scores) -> str:
    """The uncertainty that a method was made for."""
    method, draws = scores.settings["method"], scores.settings["draws"]
    if method == "bnn" or (method == "dnn" and draws > 0):
        return "mutual_information"
    return "max_probability" if method in ("dnn", "rpl", "gcpl") else "vacuity"


def _read_folder(folder: Path, name: str, score: str, unknown: str) -> list[Method]:
    parts = _load_parts(folder)
    if score == "openmax":
        parts = _with_openmax(folder, parts)
    known, train, val = parts["known"], parts.get("train"), parts.get("val")
    sets = {part.removeprefix("unknown_"): scores for part, scores in parts.items() if part.startswith("unknown_")}
    if unknown and unknown not in sets:
        raise InputError(f"{folder}: it has no unknown set {unknown!r}; there are: {', '.join(sets)}.")
    methods = []
    for which, scores in sets.items():
        if unknown not in ("", which):
            continue
        also_known, doubtful = shared_classes(known.classes, scores.label_names)
        for score_name in _chosen(folder, score, own_score(known), list(known.uncertainties)):
            trained = None if train is None else train.uncertainties[score_name]
            source = (
                f"{folder} has no train.npz" if train is None else f"keeps 95 % of {len(train.labels)} training videos"
            )
            methods.append(Method(
                name=name, score=score_name, unknown_set=which,
                known=_videos(known, score_name), unknown=_videos(scores, score_name),
                known_classes=known.classes, unknown_classes=scores.label_names,
                threshold=None if trained is None else threshold_keeping(trained), threshold_from=source,
                train_uncertainty=trained, val_uncertainty=None if val is None else val.uncertainties[score_name],
                also_known=also_known, doubtful=doubtful,
            ))  # fmt: skip
    return methods


def _load_parts(folder: Path) -> dict[str, Scores]:
    """The files of a folder by name, of one network: `known`, every `unknown_NAME`, `train` and `val` if there."""
    run = folder.parent if folder.name == "scores" else folder
    advice = f"`mindvideo openset predict {run} unknown.dataset=NAME` writes it."
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder or .npz file.")
    names = [path.stem for path in sorted(folder.glob("unknown_*.npz")) if not path.stem.endswith(".unfinished")]
    if not (folder / "known.npz").is_file():
        raise InputError(f"{folder}: no scores there, known.npz is missing; {advice}")
    if not names:
        raise InputError(f"{folder}: no unknown videos were scored, unknown_NAME.npz is missing; {advice}")
    names += [name for name in ("train", "val") if (folder / f"{name}.npz").is_file()]
    parts = {name: load_scores(folder / f"{name}.npz") for name in ["known", *names]}
    known = parts["known"]
    for name, scores in parts.items():
        path = folder / f"{name}.npz"
        if not len(scores.labels):
            raise InputError(f"{path}: there is no video in it.")
        if scores.classes != known.classes:
            raise InputError(
                f"{path}: its {len(scores.classes)} known classes are not the {len(known.classes)} of known.npz."
            )
        if (scores.model_hash, scores.settings) != (known.model_hash, known.settings):
            raise InputError(f"{path}: scored with other weights or settings than known.npz; {advice}")
        if name in ("known", "train", "val") and scores.label_names != scores.classes:
            raise InputError(f"{path}: its videos show other classes than the known ones.")
        if list(scores.uncertainties) != list(known.uncertainties):
            raise InputError(f"{path}: its scores {', '.join(scores.uncertainties)} are not those of known.npz.")
    return parts


def _with_openmax(folder: Path, parts: dict[str, Scores]) -> dict[str, Scores]:
    """The same videos with OpenMax's probabilities of the known classes, and its uncertainty: that of the unknown."""
    if "train" not in parts:
        raise InputError(f"{folder}: OpenMax is fitted on training videos, but train.npz is missing.")
    train = parts["train"]
    try:
        model = OpenMax.fit(train.features, train.logits, train.labels)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None

    def revise(scores: Scores) -> Scores:
        revised = model.probabilities(scores.features, scores.logits)
        return replace(scores, probabilities=revised[:, :-1], uncertainties={"openmax": revised[:, -1]})

    return {name: revise(scores) for name, scores in parts.items()}


def _videos(scores: Scores, score: str) -> Videos:
    # Of equal probabilities the last class counts, as in the accuracies of metrics/accuracy.py.
    last = scores.probabilities.shape[1] - 1
    return Videos(
        labels=scores.labels, predicted=last - scores.probabilities[:, ::-1].argmax(axis=1),
        uncertainty=scores.uncertainties[score], confidence=scores.probabilities.max(axis=1),
        sources=np.array(scores.groups), probabilities=scores.probabilities,
    )  # fmt: skip


# Result files of DEAR


def _read_result(path: Path, name: str, score: str) -> list[Method]:
    """The methods of a file with `ind_` (known) and `ood_` (unknown) arrays conf, pred, label and perhaps unctt.

    Without unctt the uncertainty is 1 - conf. The numbers of classes are `ind_ncls` and `ood_ncls`, or as many as the
    labels need; a `threshold` is one of unctt or, without it, of conf.
    """
    arrays = read_arrays(path)
    own = "uncertainty" if "ind_unctt" in arrays else "max_probability"
    fields = ["conf", "pred", "label", *(["unctt"] if own == "uncertainty" else [])]
    parts = {part: {field: _array(path, arrays, f"{part}_{field}") for field in fields} for part in ("ind", "ood")}
    num_known, num_unknown = (_num_classes(path, arrays, part) for part in ("ind", "ood"))
    for part in parts:
        # One number more than the known classes have is OpenMax's unknown.
        if parts[part]["pred"].max() > num_known:
            raise InputError(f"{path}: {part}_pred holds {parts[part]['pred'].max()}; the unknown is {num_known}.")
    threshold = _scalar(path, arrays, "threshold") if "threshold" in arrays else None
    if threshold is not None and own == "max_probability":
        # In the file's precision, in which 1 - conf is exact, so that equal ones stay equal.
        threshold = float(1 - parts["ind"]["conf"].dtype.type(threshold))

    def videos(part: dict[str, np.ndarray], score_name: str) -> Videos:
        uncertainty = part["unctt"] if score_name == "uncertainty" else 1 - part["conf"]
        return Videos(part["label"], part["pred"], uncertainty, part["conf"], np.arange(len(uncertainty)))

    return [
        Method(
            name=name, score=score_name, unknown_set="",
            known=videos(parts["ind"], score_name), unknown=videos(parts["ood"], score_name),
            known_classes=[str(number) for number in range(num_known)],
            unknown_classes=[str(number) for number in range(num_unknown)],
            threshold=threshold if score_name == own else None,
            threshold_from="the file's" if score_name == own and threshold is not None else
            f"{path} has no threshold of this score",
            train_uncertainty=None, val_uncertainty=None,
            also_known=HMDB51_KNOWN if (num_known, num_unknown) == (101, 51) else None, doubtful=[],
        )
        for score_name in _chosen(path, score, own, list(dict.fromkeys([own, "max_probability"])))
    ]  # fmt: skip


def _array(path: Path, arrays: dict[str, np.ndarray], key: str) -> np.ndarray:
    """A result file's array `[N]`, int64 or float; InputError if it is missing, empty, of another length or kind."""
    part, field = key.split("_")
    if key not in arrays:
        raise InputError(f"{path}: no result file of DEAR's, it has no array {key!r}; a run is named by its folder.")
    values, length = arrays[key], arrays[f"{part}_conf"].shape
    if values.ndim != 1 or not values.size or values.dtype.kind not in "fiu":
        raise InputError(
            f"{path}: {key} is {values.dtype} of shape {values.shape}; it must hold one number a video, of some videos."
        )
    if values.shape != length:
        raise InputError(f"{path}: {key} has {len(values)} entries, {part}_conf has {length[0]}.")
    if field in ("conf", "unctt"):
        return values if values.dtype.kind == "f" else values.astype(np.float64)
    if (values != values.astype(np.int64)).any() or values.min() < 0:
        raise InputError(f"{path}: {key} must hold class numbers from 0.")
    return values.astype(np.int64)


def _scalar(path: Path, arrays: dict[str, np.ndarray], key: str) -> float:
    if arrays[key].size != 1 or arrays[key].dtype.kind not in "fiu":
        raise InputError(f"{path}: {key} is {arrays[key].dtype} of shape {arrays[key].shape}; it must be one number.")
    return float(arrays[key].item())


def _num_classes(path: Path, arrays: dict[str, np.ndarray], part: str) -> int:
    """As many as the file says, else as many as its labels need."""
    needed = int(arrays[f"{part}_label"].max()) + 1
    count = int(_scalar(path, arrays, f"{part}_ncls")) if f"{part}_ncls" in arrays else needed
    if count < needed:
        raise InputError(f"{path}: {part}_ncls is {count}, but {part}_label holds {needed - 1}.")
    return count
