# SPDX-License-Identifier: Apache-2.0
"""What the repository says of itself to other programs: citation, container, dev container, forms for issues."""

from __future__ import annotations

import json
import re
import tomllib
from fnmatch import fnmatch

import pytest
import yaml

import mindvideo
from tests.conftest import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
FORMS = sorted((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*_*.yml"))


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["message"]
    assert citation["title"] == "MindVideo"
    assert citation["version"] == mindvideo.__version__
    assert citation["license"] == PROJECT["license"]["text"]
    assert citation["abstract"].rstrip(".") == PROJECT["description"]
    assert citation["authors"] == [{"name": "The MindVideo authors"}]


def test_the_cited_papers_are_those_of_the_notice():
    notice = " ".join((REPOSITORY / "NOTICE").read_text(encoding="utf-8").split())
    for paper in yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))["references"]:
        title = paper["title"] if paper["title"] in notice else paper["title"].partition(":")[0]
        authors = ", ".join(f"{author['given-names']} {author['family-names']}" for author in paper["authors"])
        assert f"{authors}: {title}. {paper['collection-title']}" in notice
        assert paper["collection-title"].endswith(str(paper["year"]))
        assert paper["type"] == "conference-paper"
        assert all(known["value"].removeprefix("arXiv:") in notice for known in paper.get("identifiers", ()))


def test_the_dockerfile_names_what_exists():
    steps = re.findall(r"^([A-Z]+) (.*)", DOCKERFILE.replace("\\\n", ""), re.MULTILINE)
    words = {name: [text for step, text in steps if step == name] for name, _ in steps}
    assert words["FROM"] == ["python:3.11-slim-bookworm"]
    copied = [source for text in words["COPY"] for source in text.split()[1:-1]]
    assert all((REPOSITORY / source).exists() for source in copied)
    (command,) = json.loads(words["ENTRYPOINT"][0])
    assert command in PROJECT["scripts"]
    runs = "\n".join(words["RUN"])
    modules = re.findall(r"python -m (mindvideo[\w.]*)", runs)
    assert modules
    assert all((REPOSITORY / f"{module.replace('.', '/')}.py").is_file() for module in modules)
    extras = re.findall(r"\.\[([\w,]+)\]", runs)
    assert extras
    assert all(extra in PROJECT["optional-dependencies"] for names in extras for extra in names.split(","))
    # The last user is nobody's root, and what README says to type is what the file says.
    assert words["USER"] == ["mindvideo"]
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for line in re.findall(r"^#   (docker .*)", DOCKERFILE, re.MULTILINE):
        assert line in readme
        assert all((REPOSITORY / config).is_file() for config in re.findall(r"configs/\S+", line))


def test_the_image_gets_all_that_the_package_needs():
    lines = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    ignored = [line.removeprefix("**/") for line in lines if line and not line.startswith("#")]
    needed = ["pyproject.toml", "requirements.txt", "README.md", "LICENSE", "mindvideo", "configs", "scripts", ".git"]
    needed += ["data/data.json", "data/splits", "mindvideo/native/operators.cc"]
    assert [(name, pattern) for name in needed for pattern in ignored if fnmatch(name, pattern)] == []


def test_the_dev_container_is_made_of_the_dockerfile():
    folder = REPOSITORY / ".devcontainer"
    settings = json.loads((folder / "devcontainer.json").read_text(encoding="utf-8"))
    assert (folder / settings["build"]["dockerfile"]).resolve() == REPOSITORY / "Dockerfile"
    assert (folder / settings["build"]["context"]).resolve() == REPOSITORY
    assert f"USER {settings['remoteUser']}\n" in DOCKERFILE
    assert "requirements.txt --editable .[dev]" in settings["postCreateCommand"]
    assert "dev" in PROJECT["optional-dependencies"]


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_forms_are_well_formed(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert form["name"]
    assert form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert all(field["type"] in ("textarea", "input") and field["attributes"]["label"] for field in fields)
    names = [field["id"] for field in fields]
    assert len(set(names)) == len(names)


def test_a_bug_report_asks_for_what_is_needed():
    assert [path.name for path in FORMS] == ["bug_report.yml", "feature_request.yml"]
    text = FORMS[0].read_text(encoding="utf-8")
    for asked in ("`mindvideo doctor`", "config.yaml", "The command, and its last lines"):
        assert asked in text
    template = (FORMS[0].parent.parent / "pull_request_template.md").read_text(encoding="utf-8")
    assert "CONTRIBUTING.md" in template
    assert template.count("\n") <= 10
