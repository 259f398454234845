"""Hook of MkDocs: adds the pages of the repository to the site, at the paths that they have in the repository.

So their links to each other work as they do in the repository. Whatever else they link to (pictures, licenses, scripts)
becomes part of the site as it is; links to folders lose their target.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "*.md",
    "docs/**/*.md",
    "data_manifests/README.md",
    "extract/*.md",
    "train/*.md",
    "eval/*.md",
    "tests/benchmarks/README.md",
)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add the pages and the files that they link to."""
    for file in list(files.documentation_pages()):
        files.remove(file)  # added again at its place in the repository
    pages = sorted({path for pattern in PAGES for path in ROOT.glob(pattern)})
    targets = {target for page in pages for target in _linked_files(page)} - set(pages)
    for path in (*pages, *sorted(targets)):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Replace links to folders by their text."""
    folder = (ROOT / page.file.src_uri).parent

    def without_folder(match: re.Match[str]) -> str:
        _, text, target, _ = match.groups()
        return str(text) if "://" not in target and (folder / target).is_dir() else match[0]

    return _LINK.sub(without_folder, markdown)


def _linked_files(page: Path) -> set[Path]:
    """Return the files of the repository that a page links to."""
    links = (match[3] for match in _LINK.finditer(page.read_text("utf-8")))
    paths = ((page.parent / link).resolve() for link in links if "://" not in link)
    return {path for path in paths if path.is_file() and path.is_relative_to(ROOT)}
