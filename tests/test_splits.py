# SPDX-License-Identifier: Apache-2.0
"""Class splits: the numbers of the published ones, spellings on disk, video lists, and what is told of the rest."""

import gzip
import re
from collections import Counter
from pathlib import Path

import pytest

from mindvideo.config import REPOSITORY
from mindvideo.data.datasets import READERS
from mindvideo.data.manifest import Sample
from mindvideo.data.splits import PARTS, Selection, match_classes, read_classes, read_split, select
from mindvideo.errors import InputError
from tests.conftest import outside_folder

SPLITS = REPOSITORY / "data" / "splits"

# Class counts, and video counts where a list defines the benchmark, as published.
PUBLISHED = {
    "ucf101_arn": ((70, 10, 21), None),
    "hmdb51_arn": ((31, 10, 10), None),
    "minimit_arn": ((120, 39, 40), None),  # the paper's 40 validation classes without `tapping`
    "kinetics100_cmn": ((64, 12, 24), (6400, 1200, 2400)),
    "ssv2small_cmn": ((64, 12, 24), (6400, 1200, 2400)),
    "ssv2full_otam": ((64, 12, 24), (67013, 1926, 2857)),
    "ucf101_small": ((6, 5, 5), None),
}


def write_split(folder: Path, train: str = "a", val: str = "b", test: str = "c", **videos: str) -> Path:
    """A split's lists, items parted by commas; video lists as `train_videos="a/1, a/2"`."""
    folder.mkdir(exist_ok=True)
    for name, items in {"train": train, "val": val, "test": test, **videos}.items():
        (folder / f"{name}.txt").write_text("".join(f"{item.strip()}\n" for item in items.split(",")))
    return folder


def tree(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def selected(tmp_path: Path, reader: str, *names: str) -> Selection:
    return select(read_split(tmp_path / "split"), READERS[reader](tree(tmp_path / "videos", *names)))


def names_of(selection: Selection, part: str) -> list[tuple[str, str]]:
    return [(sample.label, sample.path.name) for sample in selection.samples[part]]


def test_every_split_is_tested_here():
    """All but the folder of the open-set protocols' list."""
    assert {path.name for path in SPLITS.iterdir()} == {*PUBLISHED, "openset"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers_and_disjoint_parts(name):
    classes, videos = PUBLISHED[name]
    split = read_split(SPLITS / name)
    assert tuple(len(split.classes[part]) for part in PARTS) == classes
    everything = [label for part in PARTS for label in split.classes[part]]
    assert len({re.sub("[^a-z0-9]", "", label.lower()) for label in everything}) == sum(classes)
    if videos is None:
        assert split.videos == {}
        return
    assert tuple(len(split.videos[part]) for part in PARTS) == videos
    listed = [pair for part in PARTS for pair in split.videos[part]]
    assert len({video for _, video in listed}) == sum(videos)
    for part in PARTS:
        assert {label for label, _ in split.videos[part]} == set(split.classes[part])
    if name.endswith("_cmn"):
        assert set(Counter(label for label, _ in listed).values()) == {100}


def test_the_arn_splits_part_whole_data_sets():
    ucf101 = read_split(SPLITS / "ucf101_arn").classes
    assert len({label for labels in ucf101.values() for label in labels}) == 101
    assert {"ApplyEyeMakeup", "MoppingFloor", "TrampolineJumping", "TaiChi", "PullUps"} <= set(ucf101["train"])
    hmdb51 = read_split(SPLITS / "hmdb51_arn").classes
    assert len({label for labels in hmdb51.values() for label in labels}) == 51
    assert {"brush_hair", "sword_exercise"} <= set(hmdb51["train"])
    assert "swing_baseball" in hmdb51["val"]
    small = read_split(SPLITS / "ucf101_small").classes
    assert not set(small["train"]) & {*ucf101["val"], *ucf101["test"]}


def test_minimit_trains_on_tapping_and_does_not_validate_on_it():
    classes = read_split(SPLITS / "minimit_arn").classes
    assert [part for part in PARTS if "tapping" in classes[part]] == ["train"]


def test_the_ssv2_benchmarks_agree_on_the_class_of_a_video():
    small, full = (
        {video: label for pairs in read_split(SPLITS / name).videos.values() for label, video in pairs}
        for name in ("ssv2small_cmn", "ssv2full_otam")
    )
    shared = set(small) & set(full)
    assert len(shared) == 3192
    assert [video for video in shared if small[video] != full[video]] == []


@pytest.mark.parametrize("name", sorted(set(PUBLISHED) - {"ucf101_small"}))
def test_committed_lists_equal_the_collected_ones(name):
    facts = outside_folder("MINDVIDEO_SPLITS", "splits")
    if facts is None:
        pytest.skip("no collected lists: set MINDVIDEO_SPLITS to run this test")
    split = read_split(SPLITS / name)
    for part in PARTS:
        if name == "ssv2full_otam":  # there the classes are called train0, train1, ...: the same parting of the videos
            listed = [line.rsplit("/", 1) for line in _lines(facts / f"{name}_{part}_videos.txt")]
            ours = {video: label for label, video in split.videos[part]}
            assert set(ours) == {video for _, video in listed}
            assert len({(ours[video], label) for label, video in listed}) == len(split.classes[part])
            continue
        expected = set(_lines(facts / f"{name}_{part}_classes.txt"))
        assert set(split.classes[part]) == expected - ({"tapping"} if part == "val" else set())
        if part in split.videos:
            assert {"/".join(pair) for pair in split.videos[part]} == set(_lines(facts / f"{name}_{part}_videos.txt"))


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def test_read_classes(tmp_path):
    (tmp_path / "train.txt").write_text("Sit Down\n\n  Jump  \n")
    assert read_classes(tmp_path, "train") == ["Sit Down", "Jump"]
    with pytest.raises(InputError, match=r"data\.split: .*val\.txt does not exist; .*train\.txt, val\.txt, test\.txt"):
        read_classes(tmp_path, "val")


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"test": "c, b"}, "b stand in both val.txt and test.txt"),
        ({"val": "b, d, b"}, r"val\.txt: b stand twice"),
        ({"val_videos": "b/1, b/2, b/1"}, r"val_videos\.txt: b/1 stand twice"),
        ({"val_videos": "b/1, a/2"}, r"val_videos\.txt: 'a/2' is not `class/video` with a class of val\.txt"),
        ({"val_videos": "b/1, b"}, r"val_videos\.txt: 'b' is not `class/video`"),
        ({"val_videos": "b/"}, r"val_videos\.txt: 'b/' is not `class/video`"),
    ],
)
def test_faulty_lists_are_refused(tmp_path, lists, message):
    with pytest.raises(InputError, match=message):
        read_split(write_split(tmp_path / "split", **lists))


def test_video_lists_may_be_gzipped(tmp_path):
    folder = write_split(tmp_path / "split", train_videos="a/1, a/2")
    plain = read_split(folder)
    text = (folder / "train_videos.txt").read_bytes()
    (folder / "train_videos.txt").unlink()
    (folder / "train_videos.txt.gz").write_bytes(gzip.compress(text))
    assert read_split(folder) == plain
    assert plain.videos == {"train": [("a", "1"), ("a", "2")]}
    for damaged in (b"a/1\n", gzip.compress(text)[:-9], b""):
        (folder / "train_videos.txt.gz").write_bytes(damaged)
        with pytest.raises(InputError, match=r"train_videos\.txt\.gz: "):
            read_split(folder)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("brush_hair", "brush hair"),
        ("YoYo", "Yo Yo"),
        ("HandstandPushups", "HandStandPushups"),
        ("riding a bike", "riding_a_bike"),
        ("playing music", "playing+music"),
        ("massaging person's head", "massaging-person-s-head"),
        ("Lifting something up completely, then letting it drop down", "lifting_something_up_completely_then_letting_it_drop_down"),  # noqa: E501
        ("throwing ball (not baseball or American football)", "throwing ball not baseball or american football"),
    ],
)  # fmt: skip
def test_spellings_of_one_class(name, folder):
    assert match_classes([name], [folder]) == {name: folder}
    assert match_classes([folder], [name]) == {folder: name}


@pytest.mark.parametrize(("name", "folder"), [("kick", "kick_ball"), ("run", "runs"), ("YoYo", "Yo"), ("!", "?")])
def test_other_classes_do_not_match(name, folder):
    assert match_classes([name], [folder]) == {}


def test_the_exact_name_wins():
    assert match_classes(["C", "C++"], ["C", "C++"]) == {"C": "C", "C++": "C++"}
    assert match_classes(["C", "C++"], ["C"]) == {"C": "C"}
    assert match_classes(["YoYo"], ["YoYo", "Yo Yo"]) == {"YoYo": "YoYo"}


def test_ambiguous_spellings_are_refused():
    with pytest.raises(InputError, match="class 'yo_yo': the folders 'Yo Yo' and 'YoYo' fit; merge or rename them"):
        match_classes(["walk", "yo_yo"], ["YoYo", "walk", "Yo Yo"])
    with pytest.raises(InputError, match="folder 'yo_yo': the classes 'Yo Yo' and 'YoYo' fit; keep one"):
        match_classes(["YoYo", "Yo Yo"], ["yo_yo"])


def test_samples_bear_the_names_of_the_split(tmp_path):
    write_split(tmp_path / "split", train="brush_hair, YoYo", val="walk", test="run")
    selection = selected(
        tmp_path, "folder", "Brush Hair/1.avi", "Brush Hair/2.avi", "YoYo/1.avi", "run/1.avi", "walk/1.avi"
    )
    assert names_of(selection, "train") == [("brush_hair", "1.avi"), ("brush_hair", "2.avi"), ("YoYo", "1.avi")]
    assert selection.samples["train"][0].group == "Brush Hair/1"
    assert selection.notes() == [
        "train: 2 of 2 classes, 3 videos",
        "val: 1 of 1 classes, 1 videos",
        "test: 1 of 1 classes, 1 videos",
    ]


def test_absent_and_surplus_classes_are_named(tmp_path):
    write_split(tmp_path / "split", train="sword exercies, walk, dive", val="b", test="c, d")
    selection = selected(tmp_path, "folder", "sword_exercise/1.avi", "walk/1.avi", "b/1.avi", "c/1.avi", "zumba/1.avi")
    assert selection.absent_classes == {"train": ["dive", "sword exercies"], "val": [], "test": ["d"]}
    assert selection.surplus == ["sword_exercise", "zumba"]
    assert selection.notes(["train", "val"]) == [
        "train: 1 of 3 classes, 1 videos",
        "train: classes not on disk: dive, sword exercies (closest: sword_exercise)",
        "val: 1 of 1 classes, 1 videos",
        "classes on disk that are in no part: sword_exercise, zumba",
    ]


def test_only_listed_videos_are_taken_and_missing_ones_named(tmp_path):
    stems = [f"{letter * 10}_" for letter in "abcdefgh"]
    listed = ", ".join(f"riding a bike/{stem}_000001_000011" for stem in stems)
    write_split(tmp_path / "split", "riding a bike", "yoga", "zumba", train_videos=listed)
    selection = selected(
        tmp_path, "kinetics",
        f"riding_a_bike/{stems[0]}_000001_000011.mp4",
        f"riding_a_bike/{stems[1]}.mp4",  # no times: the id decides
        f"riding_a_bike/{stems[2]}_000099_000109.mp4",  # another clip of that video
        f"yoga/{stems[3]}_000001_000011.mp4",  # another class
        f"yoga/{stems[4]}.mp4",
    )  # fmt: skip
    assert [Path(name).stem for _, name in names_of(selection, "train")] == [f"{stems[0]}_000001_000011", stems[1]]
    assert {label for label, _ in names_of(selection, "train")} == {"riding a bike"}
    assert len(selection.samples["val"]) == 2  # no list: the whole class
    assert selection.absent_videos["train"] == [("riding a bike", f"{stem}_000001_000011") for stem in stems[2:]]
    shown = ", ".join(f"riding a bike/{stem}_000001_000011" for stem in stems[2:7])
    assert selection.notes(["train"])[1] == f"train: 6 of 8 listed videos are not on disk: {shown}, ..."


def test_a_clip_named_with_its_times_goes_before_the_bare_id(tmp_path):
    write_split(tmp_path / "split", train_videos="a/0123456789a_000001_000011")
    selection = selected(tmp_path, "kinetics", "a/0123456789a.mp4", "a/0123456789a_000001_000011.mp4")
    assert names_of(selection, "train") == [("a", "0123456789a_000001_000011.mp4")]


def test_a_class_none_of_whose_listed_videos_is_there_is_absent(tmp_path):
    write_split(tmp_path / "split", train="a, x", train_videos="a/1, x/2")
    selection = selected(tmp_path, "folder", "a/1.avi", "x/3.avi")
    assert selection.absent_classes["train"] == ["x"]
    assert selection.notes(["train"]) == [
        "train: 1 of 2 classes, 1 videos",
        "train: classes not on disk: x",
        "train: 1 of 2 listed videos are not on disk: x/2",
    ]


@pytest.mark.parametrize("folder", ["", "Holding something/", "shard/"])
def test_lists_give_an_ssv2_tree_its_classes(tmp_path, folder):
    lists = {f"{part}_videos": f"{label}/{i}" for i, (part, label) in enumerate(zip(PARTS, "abc", strict=True))}
    write_split(tmp_path / "split", **lists)
    selection = selected(tmp_path, "ssv2", *(f"{folder}{i}.webm" for i in range(9)))
    assert [names_of(selection, part) for part in PARTS] == [[("a", "0.webm")], [("b", "1.webm")], [("c", "2.webm")]]
    assert (selection.surplus, selection.absent_videos) == ([], {part: [] for part in PARTS})


def test_an_empty_video_list_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"val_videos\.txt: lists no video; remove it to take all videos"):
        read_split(write_split(tmp_path / "split", val_videos=""))


def test_a_tree_without_classes_needs_video_lists(tmp_path):
    write_split(tmp_path / "split", train_videos="a/1", val_videos="b/2")
    with pytest.raises(InputError, match=r"the tree names no classes, so test_videos\.txt must list the videos"):
        selected(tmp_path, "ssv2", "1.webm", "2.webm")


def test_one_file_is_never_two_videos_nor_one_video_two_files(tmp_path):
    write_split(tmp_path / "split", train_videos="a/1", val_videos="b/2", test_videos="c/1")
    with pytest.raises(InputError, match=r"1\.webm is in 'a' and 'c'"):
        selected(tmp_path, "ssv2", "1.webm", "2.webm")
    write_split(tmp_path / "split", test_videos="c/3")
    with pytest.raises(InputError, match=r"b/2: both .*2\.mp4 and .*2\.webm fit; remove one"):
        selected(tmp_path, "ssv2", "2.mp4", "3.webm")


def test_frame_folders_and_dots_in_names_are_matched(tmp_path):
    write_split(tmp_path / "split", train_videos="a/clip.v2.1")
    assert names_of(selected(tmp_path, "folder", "a/clip.v2.1/1.png", "a/clip.v2.avi"), "train") == [("a", "clip.v2.1")]


def test_all_of_kinetics100_is_found_under_either_spelling():
    split = read_split(SPLITS / "kinetics100_cmn")
    samples = [
        Sample(Path(label.replace(" ", "_")) / f"{video}.mp4", label.replace(" ", "_"), video[:11])
        for part in PARTS
        for label, video in split.videos[part]
    ]
    selection = select(split, samples[1:])
    assert [len(selection.samples[part]) for part in PARTS] == [6399, 1200, 2400]
    assert selection.absent_videos == {"train": [split.videos["train"][0]], "val": [], "test": []}


@pytest.mark.parametrize(
    ("data", "name", "found"), [("ucf101", "ucf101_small", (6, 5, 5)), ("hmdb51_jhmdb", "hmdb51_arn", (12, 4, 5))]
)
def test_real_trees_match_their_split(real_data, data, name, found):
    samples = READERS[data.split("_")[0]](real_data / data)
    selection = select(read_split(SPLITS / name), samples)
    assert tuple(len({s.label for s in selection.samples[part]}) for part in PARTS) == found
    assert sum(map(len, selection.samples.values())) == len(samples)
    assert selection.surplus == []
