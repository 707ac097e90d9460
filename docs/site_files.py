"""What is on the documentation site: every page at its path in the repository, and what the pages link to, so that links hold.

A hook of MkDocs (mkdocs.yml); `make docs-site` calls it. Not aware of: how a page looks.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = (
    "*.md",
    "docs/**/*.md",
    "benchmarks/*.md",
    "benchmarks/*/*.md",
    "examples/*/README.md",
    "src/dlproxy/lab/digits/README.md",
)
SHOWN = {".svg", ".png"}
"""Other files are there as text, which a browser shows instead of saving it."""
FETCHED = re.compile(r"""<(?:script|img|link|iframe)[^>]*\s(?:src|href)=["']?(?:https?:)?//[^>]*""")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """The repository's pages instead of those that MkDocs found, and the navigation of them; the theme's own files stay."""
    pages = {path for pattern in PAGES for path in ROOT.glob(pattern) if "results" not in path.parts}
    linked = {target for page in pages for target in _links(page)} - pages
    names = sorted(path.relative_to(ROOT).as_posix() for path in pages)
    config.nav = _expanded(config.nav, names, _named(config.nav))
    told = [file for file in files if file.src_dir != config.docs_dir]
    told += [File(name, str(ROOT), config.site_dir, config.use_directory_urls) for name in names]
    for path in sorted(linked):
        name = path.relative_to(ROOT).as_posix()
        place = name if path.suffix in SHOWN else f"{name}.txt"
        told.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls, dest_uri=place))
    return Files(told)


def on_post_page(output: str, *, page: Page, config: MkDocsConfig) -> str:
    """Raises PluginError if a reader's browser would ask another host for anything."""
    if found := FETCHED.search(output):
        raise PluginError(f"{page.file.src_uri} fetches from another host: {found[0]}")
    return output


def _links(page: Path) -> Iterator[Path]:
    """The files of the repository that a page links to or shows."""
    for target in re.findall(r"\]\(([^)\s#]+)", page.read_text("utf-8")):
        path = (page.parent / target).resolve()
        if path.is_relative_to(ROOT) and path.is_file():
            yield path


def _named(nav: Any) -> set[str]:
    """All pages that a navigation names in full."""
    if isinstance(nav, str):
        return set() if "*" in nav else {nav}
    return set().union(*(_named(part) for part in (nav.values() if isinstance(nav, dict) else nav)))


def _expanded(nav: Any, names: list[str], taken: set[str]) -> Any:
    """With the pages that nothing before has taken in the place of each pattern; parts without a page are left out."""
    if isinstance(nav, dict):
        parts = {title: _expanded(part, names, taken) for title, part in nav.items()}
        return {title: part for title, part in parts.items() if part}
    if isinstance(nav, list):
        told: list[Any] = []
        for part in nav:
            found = _expanded(part, names, taken)
            told += found if isinstance(found, list) else [found] * bool(found)
        return told
    if "*" not in nav:
        return nav
    pattern = re.compile(re.escape(nav).replace(r"\*", "[^/]*"))
    matching = [name for name in names if name not in taken and pattern.fullmatch(name)]
    taken.update(matching)
    return matching
