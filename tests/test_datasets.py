# SPDX-License-Identifier: Apache-2.0
"""Data sets on disk: which files become samples, their sources, cached frame counts."""

import csv
import os
from collections import Counter
from pathlib import Path

import pytest

from mindvideo.data import datasets
from mindvideo.data.datasets import READERS, cache_folder, count_all_frames
from mindvideo.data.manifest import Sample
from mindvideo.errors import InputError
from mindvideo.schema import DATASETS

TREE_READERS = ("ucf101", "stickfigures", "hmdb51", "mit", "folder")


def touch(root: Path, *names: str) -> Path:
    """Empty files: the readers of trees look at names alone."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def groups(samples: list[Sample]) -> dict[str, str]:
    return {sample.path.name: sample.group for sample in samples}


def test_every_container_and_frame_folders_are_found_and_nothing_else(make_videos):
    names = ["B/2.mp4", "B/1.avi", "A/3.mkv", "A/4.webm", "A/frames.of.5"]
    root = make_videos(names)
    touch(root, "A/notes.txt", "A/.3.mkv", "A/._4.webm", "README.md", ".git/6.avi", "lists/train.txt", "7.avi")
    samples = READERS["folder"](root)
    assert [(s.path.relative_to(root).as_posix(), s.label, s.group) for s in samples] == [
        ("A/3.mkv", "A", "A/3"),
        ("A/4.webm", "A", "A/4"),
        ("A/frames.of.5", "A", "A/frames.of.5"),
        ("B/1.avi", "B", "B/1"),
        ("B/2.mp4", "B", "B/2"),
    ]


def test_suffixes_in_capitals_count(tmp_path):
    touch(tmp_path, "A/1.AVI", "A/frames/0001.JPG")
    assert [s.path.name for s in READERS["folder"](tmp_path)] == ["1.AVI", "frames"]


def test_ucf101_sources_are_class_and_group(tmp_path):
    touch(
        tmp_path,
        "HandstandPushups/v_HandStandPushups_g01_c01.avi",
        "HandstandPushups/v_HandStandPushups_g25_c04.mp4",
        "YoYo/v_YoYo_g01_c01.webm",
        "YoYo/v_YoYo_g01_c02/0001.jpg",
    )
    samples = READERS["ucf101"](tmp_path)
    assert groups(samples) == {
        "v_HandStandPushups_g01_c01.avi": "HandstandPushups/g01",
        "v_HandStandPushups_g25_c04.mp4": "HandstandPushups/g25",
        "v_YoYo_g01_c01.webm": "YoYo/g01",
        "v_YoYo_g01_c02": "YoYo/g01",
    }
    assert {s.label for s in samples} == {"HandstandPushups", "YoYo"}


def test_stickfigures_share_their_sources_between_classes(tmp_path):
    touch(tmp_path, "Sit/v_Sit_g01_c01.avi", "Stand/v_Stand_g01_c01.avi", "Stand/v_Stand_g02_c01.avi")
    assert [s.group for s in READERS["stickfigures"](tmp_path)] == ["g01", "g01", "g02"]


@pytest.mark.parametrize("name", ["clip1.avi", "v_YoYo_g01.avi", "v_YoYo_c01_g01.avi", "v_YoYo_g01_c01_x-y.avi"])
def test_other_names_in_a_ucf101_tree_are_refused(tmp_path, name):
    touch(tmp_path, "YoYo/v_YoYo_g01_c01.avi", f"YoYo/{name}")
    with pytest.raises(InputError, match=f"YoYo/{Path(name).stem}: UCF101 names are v_<Class>_gXX_cYY"):
        READERS["ucf101"](tmp_path)


@pytest.mark.parametrize(
    ("label", "stem", "film"),
    [
        ("brush_hair", "April_09_brush_hair_u_nm_np1_ba_goo_0", "april"),
        ("clap", "@20_Rhythm_clap_u_nm_np1_fr_goo_0", "20_rhythm"),
        ("clap", "@20_Rhythm_clap_u_nm_np1_le_goo_13", "20_rhythm"),
        ("clap", "Budam_-_Clap_Hands_clap_u_nm_np1_fr_med_0", "budam_clap_hands"),
        ("clap", "_Boom_Snap_Clap__challenge_clap_u_nm_np1_fr_med_1", "boom_snap_clap_challenge"),
        ("golf", "golf_golf_f_nm_np1_fr_med_0", "golf"),
        ("golf", "my_golf_trip_golf_golf_f_cm_np2_ri_bad_3", "my_golf_trip_golf"),
        ("run", "Part_2_run_f_cm_np1_fr_med_8", "part"),
        ("run", "long_run_to_walk_run_l_cm_np12_ba_bad_20", "long_run_to_walk"),
        ("shoot_ball", "Trick_2.0_(HD)!_shoot_ball_h_cm_np0_ri_bad_1", "trick_2_0_hd"),
        (
            "climb",
            "(HQ)_Rock_Climbing_-_Free_Solo_Speed_Climb_-_Dan_Osman_climb_f_cm_np1_le_med_2",
            "hq_rock_climbing_free_solo_speed_climb_dan_osman",
        ),
    ],
)
def test_hmdb51_sources_are_films(tmp_path, label, stem, film):
    touch(tmp_path, f"{label}/{stem}.avi", f"{label}/frames_{stem}/1.png")
    assert groups(READERS["hmdb51"](tmp_path)) == {f"{stem}.avi": film, f"frames_{stem}": f"frames_{film}"}


def test_one_film_is_one_source_in_all_hmdb51_classes(tmp_path):
    touch(tmp_path, "run/Juno_run_f_cm_np1_fr_med_8.avi", "walk/juno_2_walk_f_cm_np1_ba_bad_1.avi")
    assert {s.group for s in READERS["hmdb51"](tmp_path)} == {"juno"}


def test_kinetics_sources_are_youtube_videos(tmp_path):
    touch(
        tmp_path,
        "riding a bike/-VtLx-mcPds_000012_000022.mp4",
        "riding a bike/xZM_9wLdl_0.mp4",
        "side kick/-VtLx-mcPds_000060_000070.mkv",
        "side kick/sJXu1QgZ5cg_000006_000016/0001.jpg",
    )
    samples = READERS["kinetics"](tmp_path)
    assert groups(samples) == {
        "-VtLx-mcPds_000012_000022.mp4": "-VtLx-mcPds",
        "xZM_9wLdl_0.mp4": "xZM_9wLdl_0",
        "-VtLx-mcPds_000060_000070.mkv": "-VtLx-mcPds",
        "sJXu1QgZ5cg_000006_000016": "sJXu1QgZ5cg",
    }
    assert [s.label for s in samples] == ["riding a bike"] * 2 + ["side kick"] * 2


@pytest.mark.parametrize("name", ["clip1.mp4", "sJXu1QgZ5cg_6_16.mp4", "sJXu1QgZ5cg.f137.mp4"])
def test_other_names_in_a_kinetics_tree_are_refused(tmp_path, name):
    touch(tmp_path, f"yoga/{name}")
    with pytest.raises(InputError, match=f"yoga/{Path(name).stem}: Kinetics names are <YouTube id> or"):
        READERS["kinetics"](tmp_path)


def test_moments_in_time_sources_are_videos_of_a_site(tmp_path):
    touch(
        tmp_path,
        "injecting/yt-4h2HCo6UNFE_796.mp4",
        "tying/4h2HCo6UNFE_12.mp4",
        "playing+sports/flickr-0-5-4-6-9-2-9-0-4705469290_1.mp4",
        "playing+sports/flickr-0-5-4-6-9-2-9-0-4705469290_14.mp4",
        "competing/6-4-6-7739315646.mp4",
    )
    assert groups(READERS["mit"](tmp_path)) == {
        "yt-4h2HCo6UNFE_796.mp4": "4h2HCo6UNFE",
        "4h2HCo6UNFE_12.mp4": "4h2HCo6UNFE",
        "flickr-0-5-4-6-9-2-9-0-4705469290_1.mp4": "flickr-0-5-4-6-9-2-9-0-4705469290",
        "flickr-0-5-4-6-9-2-9-0-4705469290_14.mp4": "flickr-0-5-4-6-9-2-9-0-4705469290",
        "6-4-6-7739315646.mp4": "6-4-6-7739315646",
    }


@pytest.mark.parametrize("folder", ["", "Bending something/", "shard 1/"])
def test_ssv2_trees_are_flat_or_in_any_folders_and_name_no_classes(tmp_path, folder):
    touch(tmp_path, f"{folder}1001.webm", f"{folder}37.mp4", f"{folder}52/000001.jpg", "labels/train.json", ".1.webm")
    samples = READERS["ssv2"](tmp_path)
    assert {(s.path.relative_to(tmp_path).as_posix(), s.label, s.group) for s in samples} == {
        (f"{folder}1001.webm", "", "1001"),
        (f"{folder}37.mp4", "", "37"),
        (f"{folder}52", "", "52"),
    }


def test_ssv2_without_root_or_videos(tmp_path):
    with pytest.raises(InputError, match=r"data\.root: .*nowhere is not a folder\. Expected .*<number>\.webm"):
        READERS["ssv2"](tmp_path / "nowhere")
    touch(tmp_path, "labels/train.json")
    with pytest.raises(InputError, match=r"no video found; expected .*<number>\.webm"):
        READERS["ssv2"](tmp_path)


def test_the_schema_offers_every_reader():
    assert set(DATASETS) == set(READERS)


def test_csv_files_are_read_from_their_folder(tmp_path):
    (tmp_path / "list.csv").write_text("path,label,group\na.avi,x,g\n")
    assert READERS["csv"](tmp_path / "list.csv") == [Sample(tmp_path / "a.avi", "x", "g")]


@pytest.mark.parametrize("reader", TREE_READERS)
def test_empty_class_missing_root_and_no_video(tmp_path, reader):
    with pytest.raises(InputError, match=r"data\.root: .*nowhere is not a folder\. Expected .*<Class>/<video>"):
        READERS[reader](tmp_path / "nowhere")
    (tmp_path / "file.avi").touch()
    with pytest.raises(InputError, match=r"file\.avi is not a folder"):
        READERS[reader](tmp_path / "file.avi")
    with pytest.raises(InputError, match="no video found; expected"):
        READERS[reader](tmp_path)
    touch(tmp_path, "YoYo/v_YoYo_g01_c01.avi", "Empty/.DS_Store")
    with pytest.raises(InputError, match="Empty: the class folder is empty; remove it or add videos"):
        READERS[reader](tmp_path)


def test_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("MINDVIDEO_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("MINDVIDEO_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "mindvideo"


@pytest.fixture
def counted(monkeypatch):
    """The paths whose frames were counted by decoding."""
    seen = []
    real = datasets.count_frames

    def counting(path, decoder):
        seen.append((path.name, decoder))
        return real(path, decoder)

    monkeypatch.setattr(datasets, "count_frames", counting)
    return seen


def test_frames_are_counted_once_and_cached(make_videos, cache, counted):
    root = make_videos(["A/1.avi", "A/2.mp4", "B/3"], 7)
    make_videos(["B/4.mkv"], 3)
    samples = READERS["folder"](root)
    told = []
    counts, broken = count_all_frames(samples, progress=lambda *step: told.append(step))
    assert {path.name: n for path, n in counts.items()} == {"1.avi": 7, "2.mp4": 7, "3": 7, "4.mkv": 3}
    assert broken == {}
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert len(counted) == 4
    assert (cache / "frame_counts.json").is_file()
    assert [path.name for path in cache.iterdir()] == ["frame_counts.json"]  # no temporary file stays

    assert count_all_frames(samples * 2, progress=lambda *step: told.append(step)) == (counts, {})
    assert len(counted) == 4
    assert len(told) == 4


def test_a_changed_file_and_another_decoder_are_counted_again(make_videos, cache, counted):
    root = make_videos(["A/1.avi", "A/2.avi"], 4)
    samples = READERS["folder"](root)
    count_all_frames(samples)
    (root / "A/1.avi").write_bytes(make_videos(["A/3.avi"], 9).joinpath("A/3.avi").read_bytes())
    counts, _ = count_all_frames(samples)
    assert {path.name: n for path, n in counts.items()} == {"1.avi": 9, "2.avi": 4}
    os.utime(root / "A/2.avi", ns=(1, 1))  # same size, other time
    count_all_frames(samples)
    assert [name for name, _ in counted][2:] == ["1.avi", "2.avi"]
    counts, _ = count_all_frames(samples, "opencv")
    assert [decoder for _, decoder in counted][4:] == ["opencv", "opencv"]
    assert {path.name: n for path, n in counts.items()} == {"1.avi": 9, "2.avi": 4}
    count_all_frames(samples)
    assert len(counted) == 6


def test_broken_videos_are_reported_by_name_every_time(make_videos, cache, counted):
    root = make_videos(["A/1.avi", "A/cut.avi", "A/zero.avi"])
    cut, zero = root / "A/cut.avi", root / "A/zero.avi"
    whole = cut.read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    zero.write_bytes(b"")
    samples = [*READERS["folder"](root), Sample(root / "A/gone.avi", "A", "A/gone")]
    for _ in range(2):
        counts, broken = count_all_frames(samples)
        assert [path.name for path in counts] == ["1.avi"]
        assert {path.name for path in broken} == {"cut.avi", "zero.avi", "gone.avi"}
        assert all(message.startswith(str(path)) for path, message in broken.items())
        assert "no such video" in broken[root / "A/gone.avi"]
        assert "empty" in broken[zero]
    assert Counter(name for name, _ in counted) == {"1.avi": 1, "cut.avi": 2, "zero.avi": 2}
    cut.write_bytes(whole)
    counts, broken = count_all_frames(samples)
    assert counts[cut] == 5
    assert cut not in broken


def test_a_file_replaced_within_the_clock_tick_is_counted_again(make_videos, cache):
    root = make_videos(["A/1.avi"], 4)
    samples = READERS["folder"](root)
    for length in (4, 9):
        (root / "A/1.avi").write_bytes(
            make_videos([f"B/{length}.avi"], length).joinpath(f"B/{length}.avi").read_bytes()
        )
        os.utime(root / "A/1.avi", ns=(1, 1))
        counts, _ = count_all_frames(samples)
        assert list(counts.values()) == [length]


@pytest.mark.parametrize("content", ["", '{"half": 1', "no json"])
def test_a_damaged_cache_is_made_anew(make_videos, cache, counted, content):
    samples = READERS["folder"](make_videos(["A/1.avi"]))
    cache.mkdir()
    (cache / "frame_counts.json").write_text(content)
    for _ in range(2):
        assert list(count_all_frames(samples)[0].values()) == [5]
    assert len(counted) == 1


def manifest(real_data: Path, name: str) -> list[dict[str, str]]:
    with (real_data / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["set"] == name]


@pytest.mark.parametrize(("name", "clips", "classes"), [("ucf101", 960, 16), ("hmdb51_jhmdb", 928, 21)])
def test_real_trees_agree_with_their_manifest(real_data, name, clips, classes):
    samples = READERS[name.split("_")[0]](real_data / name)
    assert len(samples) == clips
    assert len({s.label for s in samples}) == classes
    listed = {(row["file"], row["class"]) for row in manifest(real_data, name)}
    assert {(s.path.relative_to(real_data).as_posix(), s.label) for s in samples} == listed


def test_real_ucf101_has_25_sources_a_class(real_data):
    """One class of the subset has only 24, as counted from its file names."""
    samples = READERS["ucf101"](real_data / "ucf101")
    counts = Counter(group.split("/")[0] for group in {s.group for s in samples})
    names = {(s.label, s.path.stem.rsplit("_", 2)[1]) for s in samples}
    assert counts == Counter(label for label, _ in names)
    assert Counter(counts.values()) == {25: 15, 24: 1}
    test_groups = {f"g{i:02d}" for i in range(1, 8)}  # the rule of testlist01
    assert sum(s.group.split("/")[1] in test_groups for s in samples) == 309


def test_real_hmdb51_sources_leave_no_tags(real_data):
    samples = READERS["hmdb51"](real_data / "hmdb51_jhmdb")
    assert not [s.group for s in samples if "_np" in s.group or s.group.endswith(f"_{s.label}_{s.label}")]
    assert 250 < len({s.group for s in samples}) < 400


def test_real_frame_counts_agree_with_the_manifest(real_data, cache):
    wanted = {"golf", "clap"}
    rows = {row["file"]: int(row["frames"]) for row in manifest(real_data, "hmdb51_jhmdb") if row["class"] in wanted}
    samples = [s for s in READERS["hmdb51"](real_data / "hmdb51_jhmdb") if s.label in wanted]
    counts, broken = count_all_frames(samples)
    assert broken == {}
    assert {path.relative_to(real_data).as_posix(): n for path, n in counts.items()} == rows
