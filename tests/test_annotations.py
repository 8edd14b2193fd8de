# SPDX-License-Identifier: Apache-2.0
"""Official and MMAction2 annotation lists: order, class numbers, gaps that are told, mistakes that are named."""

from pathlib import Path

import pytest

from mindvideo.data.annotations import (
    Listing,
    hmdb51_list,
    kinetics_list,
    mit_list,
    part_by_group,
    read_class_names,
    read_list,
    ucf101_list,
)
from mindvideo.data.datasets import READERS, stickfigures_group, ucf101_group
from mindvideo.data.manifest import Sample, check_groups
from mindvideo.errors import InputError


def touch(root: Path, *names: str) -> Path:
    """Empty files: lists look at names alone."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def found(listing: Listing) -> list[tuple[str, str]]:
    return [(s.path.relative_to(listing.root).as_posix(), s.label) for s in listing.samples]


@pytest.fixture
def ucf101_tree(tmp_path) -> Path:
    """Two classes of three, of .mp4 files where the lists say .avi."""
    videos = [f"{c}/v_{c}_g{g:02d}_c{i:02d}" for c in ("Archery", "YoYo") for g in (8, 1) for i in (2, 1)]
    touch(tmp_path, *(f"{video}.mp4" for video in videos))
    lists = tmp_path / "ucfTrainTestlist"
    write(lists / "classInd.txt", "1 Archery", "2 Biking", "3 YoYo")
    numbers = {"Archery": 1, "YoYo": 3}
    train = [f"{v}.avi {numbers[v.partition('/')[0]]}" for v in videos if "_g08_" in v]
    write(lists / "trainlist01.txt", *train)
    write(lists / "testlist01.txt", *(f"{v}.avi\r" for v in videos if "_g01_" in v), "Biking/v_Biking_g01_c01.avi")
    return tmp_path


def test_ucf101_official_lists(ucf101_tree):
    train, test = (ucf101_list(ucf101_tree, part) for part in ("train", "test"))
    for listing, group in ((train, "g08"), (test, "g01")):
        assert listing.classes == ["Archery", "Biking", "YoYo"]
        names = [(f"{c}/v_{c}_{group}_c0{i}.mp4", c) for c in ("Archery", "YoYo") for i in (2, 1)]
        assert found(listing) == names  # in the order of the list
        assert {s.group for s in listing.samples} == {f"Archery/{group}", f"YoYo/{group}"}
    assert train.notes() == ["trainlist01.txt: 4 of 4 videos, 2 of 3 classes"]
    assert test.notes() == [
        "testlist01.txt: 4 of 5 videos, 2 of 3 classes",
        "testlist01.txt: classes without a video on disk: Biking",
    ]
    assert {s.group for s in ucf101_list(ucf101_tree, "train", group_of=stickfigures_group).samples} == {"g08"}
    with pytest.raises(InputError, match=r"trainlist02\.txt: no such list"):
        ucf101_list(ucf101_tree, "train", 2)


def test_a_missing_video_is_named_with_its_line_and_the_closest_file(ucf101_tree):
    touch(ucf101_tree, "YoYo/v_YoYo_g09_c03.webm")
    (ucf101_tree / "YoYo/v_YoYo_g08_c01.mp4").rename(ucf101_tree / "YoYo/v_YoYo_g08_C01.mp4")
    assert ucf101_list(ucf101_tree, "train").notes()[1:] == [
        "trainlist01.txt: 1 videos of the classes on disk are missing:\n"
        "  trainlist01.txt, line 4: YoYo/v_YoYo_g08_c01.avi (closest: v_YoYo_g08_C01.mp4)"
    ]


def test_ten_missing_videos_are_shown_and_all_are_counted(tmp_path):
    path = write(tmp_path / "list.txt", "A/here.avi 0", "", *(f"A/{i:02d}.avi 0" for i in range(12)))
    touch(tmp_path / "videos", "A/here.avi")
    heading, gaps = read_list(path).notes()
    assert heading == "list.txt: 1 of 13 videos, 1 of 1 classes"
    lines = gaps.split("\n")
    assert lines[0] == "list.txt: 12 videos of the classes on disk are missing:"
    assert lines[1] == "  list.txt, line 3: A/00.avi"
    assert lines[10:] == ["  list.txt, line 12: A/09.avi", "  ..."]


def test_a_video_that_two_files_could_be(ucf101_tree):
    twin = ucf101_tree / "YoYo/v_YoYo_g01_c01.webm"
    twin.touch()
    with pytest.raises(InputError, match=r"g01_c01\.avi: both .*g01_c01\.mp4 and .*g01_c01\.webm fit; remove one"):
        ucf101_list(ucf101_tree, "test")
    twin.rename(twin.with_suffix(".avi"))
    assert ("YoYo/v_YoYo_g01_c01.avi", "YoYo") in found(ucf101_list(ucf101_tree, "test"))


@pytest.fixture
def hmdb51_tree(tmp_path) -> Path:
    for label in ("walk", "run"):
        stems = [f"Juno;_Vol.{i}_{label}_f_cm_np1_fr_med_{i}" for i in range(4)]
        touch(tmp_path, *(f"{label}/{stem}.avi" for stem in stems[:3]), f"{label}/{stems[3]}/1.png")
        for number, uses in ((1, (1, 2, 0, 1)), (2, (2, 2, 1, 0))):
            lines = [f"{stem}.avi {use} " for stem, use in zip(stems, uses, strict=True)]
            write(tmp_path / f"testTrainMulti_7030_splits/{label}_test_split{number}.txt", *lines)
    return tmp_path


@pytest.mark.parametrize(("number", "train", "test"), [(1, (0, 3), (1,)), (2, (2,), (0, 1))])
def test_hmdb51_official_lists(hmdb51_tree, number, train, test):
    for part, uses in (("train", train), ("test", test)):
        listing = hmdb51_list(hmdb51_tree, part, number)
        assert listing.classes == ["run", "walk"]
        names = [f"{c}/Juno;_Vol.{i}_{c}_f_cm_np1_fr_med_{i}" for c in ("run", "walk") for i in uses]
        assert [name.removesuffix(".avi") for name, _ in found(listing)] == names
        assert {s.group for s in listing.samples} == {"juno_vol"}


def test_hmdb51_lists_may_lie_elsewhere_and_unused_videos_be_missing(hmdb51_tree, tmp_path_factory):
    lists = tmp_path_factory.mktemp("lists") / "splits"
    expected = found(hmdb51_list(hmdb51_tree, "train"))
    (hmdb51_tree / "testTrainMulti_7030_splits").rename(lists)
    (hmdb51_tree / "walk/Juno;_Vol.2_walk_f_cm_np1_fr_med_2.avi").unlink()
    listing = hmdb51_list(hmdb51_tree, "train", lists=lists)
    assert found(listing) == expected
    assert listing.notes() == ["splits: 4 of 4 videos, 2 of 2 classes"]
    with pytest.raises(InputError, match=r"no <class>_test_split4\.txt there; the splits of HMDB51 are 1, 2 and 3"):
        hmdb51_list(hmdb51_tree, "train", 4, lists=lists)
    write(lists / "run_test_split1.txt", "one.avi 1", "two.avi 3")
    with pytest.raises(InputError, match=r"run_test_split1\.txt, line 2: 'two\.avi 3' must end with a number, 0 to 2"):
        hmdb51_list(hmdb51_tree, "train", lists=lists)


def test_moments_in_time_lists(tmp_path):
    write(tmp_path / "moments_categories.txt", "playing+sports,1", "clapping,0", "tying,2")
    write(tmp_path / "trainingSet.csv", "tying/yt-abc_12.mp4,tying,3,0", "clapping/5_1.mp4,clapping,3,1")
    write(tmp_path / "validationSet.csv", "playing+sports/yt-xyz_1.mp4,playing+sports,2,1")
    touch(tmp_path / "training", "tying/yt-abc_12.mp4", "clapping/5_1.mp4")
    touch(tmp_path / "validation", "playing sports/yt-xyz_1.webm")
    train, test = (mit_list(tmp_path, part) for part in ("train", "test"))
    assert train.classes == test.classes == ["clapping", "playing+sports", "tying"]
    assert found(train) == [("tying/yt-abc_12.mp4", "tying"), ("clapping/5_1.mp4", "clapping")]
    assert found(test) == [("playing sports/yt-xyz_1.webm", "playing+sports")]
    assert [s.group for s in train.samples] == ["abc", "5"]


def test_dears_list_of_moments_in_time_needs_the_folder_of_its_part(tmp_path):
    names = read_class_names(write(tmp_path / "moments_categories.txt", "clapping,0", "playing+sports,1"))
    path = write(tmp_path / "mit_val_list_videos.txt", "playing+sports/yt-xyz_1.mp4 1", "clapping/5_1.mp4 0")
    touch(tmp_path / "validation", "playing+sports/yt-xyz_1.mp4", "clapping/5_1.mp4")
    listing = read_list(path, tmp_path / "validation", classes=names)
    assert [label for _, label in found(listing)] == ["playing+sports", "clapping"]


KINETICS = "label,youtube_id,time_start,time_end,split"


def test_kinetics_lists(tmp_path):
    path = write(
        tmp_path / "train.csv",
        KINETICS,
        "riding a bike,-VtLx-mcPds,12,22,train",
        '"yoga, hot",xZM_9wLdl_0,0,10,train',
        "riding a bike,sJXu1QgZ5cg,106,116,train",
    )
    touch(tmp_path, "riding_a_bike/-VtLx-mcPds_000012_000022.mp4", "yoga hot/xZM_9wLdl_0.mkv", "riding_a_bike/x.mp4")
    listing = kinetics_list(path, tmp_path)
    assert listing.classes == ["riding a bike", "yoga, hot"]
    assert found(listing) == [
        ("riding_a_bike/-VtLx-mcPds_000012_000022.mp4", "riding a bike"),
        ("yoga hot/xZM_9wLdl_0.mkv", "yoga, hot"),
    ]
    assert [s.group for s in listing.samples] == ["-VtLx-mcPds", "xZM_9wLdl_0"]
    assert "  train.csv, line 4: riding a bike/sJXu1QgZ5cg_000106_000116" in listing.notes()[1]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["label,id", "a,b"], r"no column time_end, time_start, youtube_id"),
        ([KINETICS, "yoga,xZM_9wLdl_0,0,10,train", "yoga,xZM_9wLdl_0,,10,train"], r"line 3: the times \('', '10'\)"),
        ([KINETICS, "yoga,xZM_9wLdl_0,0"], r"line 2: the times \('0', None\) must be whole seconds"),
    ],
)
def test_mistakes_in_kinetics_lists(tmp_path, lines, message):
    touch(tmp_path, "yoga/xZM_9wLdl_0.mp4")
    with pytest.raises(InputError, match=message):
        kinetics_list(write(tmp_path / "train.csv", *lines), tmp_path)


def test_mmaction2_lists_of_videos_and_of_folders_of_frames(tmp_path):
    path = write(
        tmp_path / "list.txt",
        "Sit Down/my video 7.avi 1",
        "Run/frames.of 3 29 0",
        "top.webm\t1",
        "Run/a 12 0",  # a video whose name ends in a number, not a folder
    )
    touch(tmp_path / "videos", "Sit Down/my video 7.avi", "Run/frames.of 3/1.jpg", "top.webm", "Run/a 12.mp4")
    listing = read_list(path)
    assert listing.classes == ["0", "1"]
    assert found(listing) == [
        ("Sit Down/my video 7.avi", "1"),
        ("Run/frames.of 3", "0"),
        ("top.webm", "1"),
        ("Run/a 12.mp4", "0"),
    ]
    assert listing.samples[0].group == "1/my video 7"
    named = read_list(path, tmp_path / "videos", classes=["run", "sit"], group_of=lambda label, _: label.upper())
    assert [(s.label, s.group) for s in named.samples] == [
        ("sit", "SIT"),
        ("run", "RUN"),
        ("sit", "SIT"),
        ("run", "RUN"),
    ]


@pytest.mark.parametrize(
    ("line", "classes", "message"),
    [
        ("a.avi", None, r"list\.txt, line 2: 'a\.avi' must end with a number, 0 or more\."),
        ("a.avi run", None, r"line 2: 'a\.avi run' must end"),
        ("a.avi -1", None, r"line 2: 'a\.avi -1' must end"),
        ("a.avi 2", ["run", "sit"], r"line 2: 'a\.avi 2' must end with a number, 0 to 1\."),
        ("7", None, r"line 2: '7' must end"),
    ],
)
def test_mistakes_in_mmaction2_lists(tmp_path, line, classes, message):
    path = write(tmp_path / "list.txt", "a.avi 0", line)
    touch(tmp_path / "videos", "a.avi")
    with pytest.raises(InputError, match=message):
        read_list(path, classes=classes)


def test_lists_without_their_videos(tmp_path):
    path = write(tmp_path / "list.txt", "A/a.avi 0", "A/b.avi 0")
    with pytest.raises(InputError, match=r"videos is not a folder; the videos of .*list\.txt should be in it"):
        read_list(path)
    (tmp_path / "videos/A").mkdir(parents=True)
    with pytest.raises(InputError, match=r"list\.txt: none of its 2 videos is below .*videos; the first is A/a\.avi"):
        read_list(path)
    with pytest.raises(InputError, match=r"none of its 0 videos is below .*videos\.$"):
        read_list(write(tmp_path / "empty.txt"))
    with pytest.raises(InputError, match=r"gone\.txt: no such list"):
        read_list(tmp_path / "gone.txt")
    path.write_bytes(b"A/\xff.avi 0\n")
    with pytest.raises(InputError, match=r"list\.txt: cannot be read: .*utf-8"):
        read_list(path)


def test_a_class_that_the_list_of_classes_lacks(ucf101_tree):
    write(ucf101_tree / "ucfTrainTestlist/classInd.txt", "1 Archery", "2 YoYoo")
    with pytest.raises(InputError, match=r"line 3: 'YoYo' is none of the 2 classes; the closest is 'YoYoo'"):
        ucf101_list(ucf101_tree, "train")


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        (["Archery", "Yo Yo"], ["Archery", "Yo Yo"]),
        (["2 Yo Yo", "1 Archery"], ["Archery", "Yo Yo"]),
        (["0 Archery", "1 YoYo"], ["Archery", "YoYo"]),
        (["playing,1", "adult+singing, 0"], ["adult+singing", "playing"]),
        (["3 point shot", "golf"], ["3 point shot", "golf"]),
    ],
)
def test_class_names_in_three_forms(tmp_path, lines, names):
    assert read_class_names(write(tmp_path / "classes.txt", *lines)) == names


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["1 A", "3 B"], "all from 0 or 1 to the last"),
        (["2 A", "3 B"], "all from 0 or 1 to the last"),
        (["A,0", "B,0"], "all from 0 or 1 to the last"),
        (["A", "B", "A"], r"classes\.txt: A stand twice"),
    ],
)
def test_mistakes_in_class_names(tmp_path, lines, message):
    with pytest.raises(InputError, match=message):
        read_class_names(write(tmp_path / "classes.txt", *lines))


def test_parting_by_group():
    samples = [Sample(Path(f"{i}"), "A", f"{stem}g{i:02d}") for i in (1, 7, 8, 25) for stem in ("A/", "")]
    train, test = part_by_group(samples)
    assert [s.path.name for s in train] == ["8", "8", "25", "25"]
    assert [s.path.name for s in test] == ["1", "1", "7", "7"]
    kept, held = part_by_group(train, [25])
    assert [s.path.name for s in kept + held] == ["8", "8", "25", "25"]
    with pytest.raises(InputError, match="the source 'juno' is not numbered gXX; give lists instead"):
        part_by_group([Sample(Path("a.avi"), "run", "juno")])


def test_real_ucf101_by_group_and_by_list(real_data, tmp_path):
    """A tree of 16 classes in .mp4: parted by group, it is what the official lists would say of it."""
    samples = READERS["ucf101"](real_data / "ucf101")
    train, test = part_by_group(samples)
    check_groups({"train": train, "test": test})
    assert len(train) + len(test) == len(samples)
    classes = sorted({s.label for s in samples})
    lines = [f"{s.label}/{s.path.stem}.avi {classes.index(s.label)}" for s in test]
    listing = read_list(
        write(tmp_path / "testlist.txt", "Archery/v_Archery_g99_c01.avi 0", *lines, "Nothing/v_Nothing_g01_c01.avi 16"),
        real_data / "ucf101",
        classes=[*classes, "Nothing"],
        group_of=ucf101_group,
    )
    assert listing.samples == test
    notes = listing.notes()
    assert notes[0] == f"testlist.txt: {len(test)} of {len(test) + 2} videos, 16 of 17 classes"
    assert notes[1] == "testlist.txt: classes without a video on disk: Nothing"
    assert "line 1: Archery/v_Archery_g99_c01.avi (closest: v_Archery_g" in notes[2]
