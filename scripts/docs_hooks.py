# SPDX-License-Identifier: Apache-2.0
"""Hooks of mkdocs.yml: the site also holds what its pages link to outside docs/, under repository/.

So the same relative links work on a code host, in an editor and in the site: README.md and other Markdown files become
pages, everything else is copied as it is. A link to nothing stays as written, and fails the strict build.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parent.parent
OUTSIDE = "repository"
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "data/README.md", "benchmarks/README.md")  # as in the nav
LINK = re.compile(r"(?<=\]\()([^()\s:#]+)(?=[#)])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/, and the files that any page links to."""
    linked = set(PAGES)
    for page in (*(REPOSITORY / "docs").glob("*.md"), *(REPOSITORY / name for name in PAGES)):
        linked |= {name for _, name in _links(page) if not name.startswith("docs/")}
    for name in sorted(linked):
        files.append(File.generated(config, f"{OUTSIDE}/{name}", abs_src_path=str(REPOSITORY / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links that leave docs/, or come back to it, to where the site has them."""
    source = _place(page.file.src_uri)
    where = dict(_links(REPOSITORY / source, markdown))

    def moved(match: re.Match[str]) -> str:
        name = where.get(match[1])
        return posixpath.relpath(_uri(name), posixpath.dirname(page.file.src_uri)) if name else match[1]

    # Python-Markdown nests lists by four spaces, and keeps the backslash that hides a bar from a table's columns.
    markdown = re.sub(r"^ {2,3}(?=- )", "    ", LINK.sub(moved, markdown), flags=re.MULTILINE)
    return re.sub(r"`[^`\n]*`", lambda code: code[0].replace(r"\|", "|"), markdown)


def _links(page: Path, text: str | None = None) -> list[tuple[str, str]]:
    """The links of a page to files that exist: as written, and from the repository's root."""
    found = []
    for target in LINK.findall(text if text is not None else page.read_text(encoding="utf-8")):
        name = os.path.relpath((page.parent / target).resolve(), REPOSITORY)
        if not name.startswith("..") and (REPOSITORY / name).is_file():
            found.append((target, name))
    return found


def _uri(name: str) -> str:
    return name.removeprefix("docs/") if name.startswith("docs/") else f"{OUTSIDE}/{name}"


def _place(uri: str) -> str:
    return uri.removeprefix(f"{OUTSIDE}/") if uri.startswith(f"{OUTSIDE}/") else f"docs/{uri}"
