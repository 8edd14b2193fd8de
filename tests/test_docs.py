# SPDX-License-Identifier: Apache-2.0
"""docs/: every config key is told, every link leads somewhere, every page is in the site, and the site builds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
import yaml

from mindvideo.config_pages import PAGE, TASKS, fields, page
from mindvideo.schema import SCHEMAS
from tests.conftest import REPOSITORY

PAGES = [
    *sorted((REPOSITORY / "docs").glob("*.md")),
    *sorted(REPOSITORY.glob("*.md")),
    REPOSITORY / "data" / "README.md",
    REPOSITORY / "benchmarks" / "README.md",
]
CODE = re.compile(r"^```.*?^```|^    .*?$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^()\s]+)\)")


def test_the_configuration_is_up_to_date():
    """`python -m mindvideo.config_pages` writes it."""
    assert PAGE.read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("task", SCHEMAS)
def test_every_key_of_a_task_is_told_once(task):
    section = page().partition(f"\n## task: {task}\n")[2].partition("\n## ")[0]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in section.splitlines() if line.startswith("| `")]
    assert [row[0].strip(" `") for row in rows] == [key for key, _ in fields(SCHEMAS[task])]
    assert all(len(row) == 4 and row[2].strip() and row[3].strip() for row in rows)
    assert TASKS[task] in section


def test_what_the_configuration_says():
    text = page()
    for row in (
        "| `seed` | `1` | a whole number from 0 to 2147483647 | of weights, data order, frames and augmentation |",
        "| `optim.lr` | `2e-05` | a number from 0 to 100 | learning rate of Adamax |",
        "| `train.tensorboard` | `false` | true or false | also write TensorBoard files |",
        "| `train.pretrained` |  | text | checkpoint to start from |",
        "| `loss.kind` | `log` | one of log, digamma, mse, cross_entropy | evidential loss |",
    ):
        assert row in text.splitlines()


def test_the_configuration_is_made_without_mindspore():
    script = "import sys; sys.modules['mindspore'] = None; from mindvideo.config_pages import page; print(len(page()))"
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert int(done.stdout) == len(page())


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_links_lead_to_files(path):
    for target in LINK.findall(CODE.sub("", path.read_text(encoding="utf-8"))):
        if not target.startswith(("https://", "#")):
            assert (path.parent / target.partition("#")[0]).exists(), target


def named(nav: object) -> list[str]:
    """The pages of a nav of mkdocs.yml, in its order."""
    if isinstance(nav, str):
        return [nav]
    entries = nav if isinstance(nav, list) else nav.values() if isinstance(nav, dict) else ()
    return [page for entry in entries for page in named(entry)]


def test_every_page_is_in_the_site():
    settings = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))
    places = [REPOSITORY / "docs" / name for name in named(settings["nav"])]
    places = [REPOSITORY / str(place).partition("/repository/")[2] if not place.exists() else place for place in places]
    assert sorted(places) == sorted(PAGES)
    assert settings["strict"] is True
    assert settings["theme"]["font"] is False


@pytest.mark.skipif(
    not all(map(find_spec, ("mkdocs", "material", "mkdocstrings"))), reason="no mkdocs: install .[docs]"
)
def test_the_site_builds_and_fetches_nothing(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    for path in tmp_path.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"<(?:script|img|iframe|source)[^>]*\ssrc=.?(?:https?:)?//", text), path
        assert not re.search(r"<link[^>]*\shref=.?(?:https?:)?//", text), path
        assert 'class="mermaid"' not in text, path  # which the theme would draw by a script from elsewhere
    told = (tmp_path / "api.html").read_text(encoding="utf-8")
    assert all(f'id="mindvideo.{name}"' in told for name in ("models.create_model", "predict.predict", "attacks.pgd"))
