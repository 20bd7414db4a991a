"""Every Python block of the README, of CONTRIBUTING and of the documentation's pages runs, in order, page by page."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import sbi_bed
from sbi_bed import __version__

ROOT = Path(__file__).parents[1]
SITE = ROOT / "tutorials" / "site"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(SITE.rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^[ \t]*(?:```|~~~|:::)[ \t]*(?:\{[\w-]+\}[ \t]*)?i?py", re.MULTILINE)  # any that might be one
METHODS = sorted((SITE / "methods").glob("*.md"))


def blocks(page):
    """Python blocks of a page, each with its line number."""
    text = page.read_text(encoding="utf-8")
    return [(text[: match.start(1)].count("\n"), match.group(1)) for match in BLOCK.finditer(text)]


def run(page):
    """Run the blocks of a page, and return the names that they define."""
    names = {"__name__": "__main__"}
    for line, code in blocks(page):
        exec(compile("\n" * line + code, page, "exec"), names)  # line numbers in errors are the page's
    return names


@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p) and p.name != "CONTRIBUTING.md"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(page)


def test_the_new_trainer_and_the_new_bound_are_small_and_learn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = ROOT / "CONTRIBUTING.md"
    for (_, code), most_lines in zip(blocks(page), (80, 60), strict=True):
        assert len(code.splitlines()) < most_lines
        tree = ast.walk(ast.parse(code))
        assert not any(isinstance(node, (ast.For, ast.While, ast.Try)) for node in tree)  # the base has the loop
    names = run(page)
    loss = names["trainer"].reports
    assert sum(loss[-5:]) / 5 == pytest.approx(0.2, abs=0.05)  # 1,280 squares: standard error .008
    bounds, gain = names["dad"].bounds, 1.0986
    assert 0.8 * gain < sum(bounds[-5:]) / 5 < gain + 0.1  # 1,280 terms: standard error .03


def test_the_block_finder_sees_all_blocks():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert len(blocks(page)) == len(FENCE.findall(text)), page


def test_each_method_has_its_page():
    assert len(METHODS) == 5
    for page in METHODS:
        text = page.read_text(encoding="utf-8")
        assert blocks(page), f"{page.name} has no example"
        for part in (
            "## Equations",
            "## In ten lines",
            "## When, and when not",
            "{py:obj}",
            "arxiv.org/abs/",
            "utorial",
        ):
            assert part in text, f"{page.name} lacks {part}"
        assert text[: text.index("```")].count("$$") >= 2


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_inside_the_project_lead_somewhere(page):
    made = {(SITE / "tutorials" / path.name).resolve(): path for path in (ROOT / "tutorials").glob("*.ipynb")}
    for target in re.findall(r"\]\(([^)#:\s]+)\)", page.read_text(encoding="utf-8")):
        path = (page.parent / target).resolve()
        assert path.exists() or path in made, f"{page.name} points to {target}"


def test_names_that_pages_refer_to_are_public():
    for page in PAGES:
        for room, name in re.findall(r"\{py:obj\}`[^<`]*<sbi_bed\.(\w+)\.(\w+)>`", page.read_text(encoding="utf-8")):
            assert name in importlib.import_module(f"sbi_bed.{room}").__all__, f"{page.name} refers to {room}.{name}"


def test_one_version_and_all_old_names_are_in_the_list_of_changes():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\d+\.\d+\.\d+)", changes, re.MULTILINE).group(1) == __version__
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    renamed = re.compile(r"^ *@renamed_arguments\((.+)\)", re.MULTILINE)
    code = "".join(path.read_text(encoding="utf-8") for path in Path(sbi_bed.__file__).parent.rglob("*.py"))
    names = [pair.split("=")[0].strip() for pairs in renamed.findall(code) for pair in pairs.split(",")]
    moved = importlib.import_module("sbi_bed.inference.trainers.design.moved_arguments")._MOVED
    assert names
    for name in (*names, *moved):
        assert f"{name}=" in changes
    for name in sbi_bed.inference._RENAMED:
        assert f"{name}`" in changes
