"""What is not written down does not exist: the reference says what the code says, links lead
somewhere, pages are reachable.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def test_the_reference_and_the_manual_pages_say_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs/generate.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_to_a_file(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_variable_the_code_reads_is_in_the_reference() -> None:
    text = (ROOT / "docs/reference/settings.md").read_text()
    for source in (ROOT / "src").rglob("*.py"):
        for name in re.findall(r"\"(VIRTUARY_(?!COMPLETE|CACHE)[A-Z_]+)\"", source.read_text()):
            assert f"`{name}`" in text, f"{name} in {source.name}"


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        name = str(page.relative_to(ROOT / "docs"))
        assert name in navigation or name.startswith("decisions/"), name


def test_every_file_that_a_text_names_is_there() -> None:
    """In documents and in docstrings: whoever follows a path finds what is told of."""
    root = Path(__file__).parent.parent
    source = root / "src" / "virtuary"
    rooms = "|".join(sorted(place.name for place in source.iterdir() if place.is_dir()))
    named = re.compile(rf"(?<![\w/.-])((?:{rooms}|tests)/[\w/]+\.(?:py|c))\b")
    texts = [*root.glob("*.md"), *(root / "docs").rglob("*.md"), *source.rglob("*.py")]
    lost = {
        f"{text.relative_to(root)}: {path}"
        for text in texts
        if text.name != "CHANGELOG.md"
        for path in named.findall(text.read_text(encoding="utf-8"))
        if not (source / path).exists() and not (root / path).exists()
    }
    assert not lost
