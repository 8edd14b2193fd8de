# SPDX-License-Identifier: Apache-2.0
"""CSV manifests, and the check that no source is in two parts."""

from pathlib import Path

import pytest

from mindvideo.data.manifest import Sample, check_groups, read_csv, select_classes, write_csv
from mindvideo.errors import InputError


def test_csv_round_trip_keeps_awkward_names(tmp_path):
    samples = [
        Sample(tmp_path / "a, b.avi", 'say "hi"', "film, one"),
        Sample(tmp_path / "Kurt_Krämer!.mp4", "läuft", "g01"),
        Sample(tmp_path / "sub" / "frames", "walk", "g01"),
    ]
    path = tmp_path / "list.csv"
    write_csv(path, samples)
    assert read_csv(path) == samples
    assert path.read_text(encoding="utf-8").splitlines()[0] == "path,label,group"


def test_relative_paths_start_at_the_root_or_the_file(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("path,label,group\na/1.avi,x,g\n/abs/2.avi,x,g\n")
    assert [s.path for s in read_csv(path)] == [tmp_path / "a/1.avi", Path("/abs/2.avi")]
    assert [s.path for s in read_csv(path, Path("/data"))] == [Path("/data/a/1.avi"), Path("/abs/2.avi")]


@pytest.mark.parametrize("header", ["path,label", "path,label,group", "group,label,path", "path,more,label"])
def test_without_a_group_each_video_is_its_own(tmp_path, header):
    path = tmp_path / "list.csv"
    values = {"path": "{}.avi", "label": " x ", "group": "", "more": "9"}
    line = ",".join(values[name] for name in header.split(","))
    path.write_text("\n".join([header, line.format("a"), line.format("b")]))
    assert [(s.label, s.group) for s in read_csv(path)] == [("x", "a.avi"), ("x", "b.avi")]


def test_a_row_that_ends_early_has_no_group(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("path,label,group\na.avi,x\n")
    assert read_csv(path) == [Sample(tmp_path / "a.avi", "x", "a.avi")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video,class\na.avi,x\n", "no column label, path; the header must be path,label,group"),
        ("path,group\na.avi,x\n", "no column label;"),
        ("", "no column label, path;"),
        ("path,label\na.avi,x\nb.avi,\n", "line 3: path and label must not be empty"),
        ("path,label\na.avi,x\nb.avi\n", "line 3: path and label must not be empty"),
        ("path,label\n  ,x\n", "line 2: path and label must not be empty"),
        ("path,label,group\n", "the file lists no video"),
    ],
)
def test_mistakes_are_named_with_file_and_line(tmp_path, text, message):
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_csv(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv: no such CSV file"):
        read_csv(tmp_path / "none.csv")


def samples_of(*groups: str) -> list[Sample]:
    return [Sample(Path(f"{i}.avi"), "x", group) for i, group in enumerate(groups)]


def test_check_groups_names_each_leak_and_its_parts():
    check_groups({"train": samples_of("a", "a", "b"), "val": samples_of("c"), "test": samples_of("d", "d")})
    with pytest.raises(InputError) as caught:
        check_groups({"train": samples_of("a", "b"), "val": samples_of("b"), "test": samples_of("c", "a")})
    assert "2 sources are in more than one part: b in train and val; a in train and test." in str(caught.value)


def test_check_groups_shows_five_leaks_of_many():
    names = [f"g{i:02d}" for i in range(12)]
    with pytest.raises(InputError) as caught:
        check_groups({"train": samples_of(*names), "test": samples_of(*names, "other")})
    assert str(caught.value).startswith("12 sources are in more than one part")
    assert str(caught.value).count("in train and test") == 5


def test_select_classes_keeps_the_order_of_the_samples():
    samples = [Sample(Path(f"{i}"), label, "g") for i, label in enumerate("cabac")]
    assert [s.path.name for s in select_classes(samples, ["a", "c", "none"])] == ["0", "1", "3", "4"]
