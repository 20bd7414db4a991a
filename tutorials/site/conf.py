"""How the documentation is built: sphinx-build -W -b html tutorials/site <folder>, with the extra `doc` installed."""

import functools
import importlib
import itertools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from sbi_bed import __version__

HERE = Path(__file__).parent

project = "sbi_bed"
author = "The sbi_bed developers"
copyright = author
release = version = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx-mathjax-offline",  # copies MathJax into the site, so that formulas show without a network
]
exclude_patterns = ["**/.ipynb_checkpoints"]
html_theme = "furo"
html_title = f"sbi_bed {version}"
html_static_path = ["static"]
html_css_files = ["wide.css"]

myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"

default_role = "literal"
smartquotes = False  # L' is a derivative
autosummary_generate = False
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_custom_sections = [("Shapes", "notes_style")]


_SHOWN_WITH_SUBCLASSES = {"RecordedExperiment", "SavedExperiment"}  # bases that no room exports


class Room(SphinxDirective):
    """All public names in `__all__` of a subpackage: a table, then each file with its docstring and its names."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Write the directives for each file and name, and let Sphinx parse them."""
        room = importlib.import_module(f"sbi_bed.{self.arguments[0]}")
        names = sorted(room.__all__, key=str.lower)
        files: dict[str, list[str]] = {}
        for name in names:
            files.setdefault(getattr(room, name).__module__, []).append(name)
        lines = [
            f".. currentmodule:: {room.__name__}",
            "",
            ".. autosummary::",
            "",
            *(f"   {name}" for name in names),
            "",
        ]
        for file in sorted(files):
            if file.startswith(room.__name__):
                title = file.removeprefix(f"{room.__name__}.")
                lines += [
                    title,
                    "-" * len(title),
                    "",
                    f".. automodule:: {file}",
                    "   :no-members:",
                    "   :no-index:",
                    "",
                ]
                lines += itertools.chain(*(self._entry(room, name) for name in files[file]))
        lower = [name for name in names if not getattr(room, name).__module__.startswith(room.__name__)]
        if lower:
            lines += ["From lower rooms", "----------------", ""]
            lines += itertools.chain(*(self._entry(room, name, "   :no-index:") for name in lower))
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)

    @staticmethod
    def _entry(room: ModuleType, name: str, *options: str) -> list[str]:
        value = getattr(room, name)
        kind = "autoclass" if isinstance(value, type) else "autofunction"
        bases = {base.__name__ for base in getattr(value, "__bases__", ())}
        shared = ["   :inherited-members:"] if bases & _SHOWN_WITH_SUBCLASSES else []
        return [f".. {kind}:: {room.__name__}.{name}", *options, *shared, ""]


_CODE = re.compile(r"(``.+?``|`[^`]+`)")
_MARKUP = re.compile(r"([*|]|(?<=\w)_(?!\w))")
_BOLD = re.compile(r"(?<![\w*])\*\*(?=[^\s*])([^*]+)(?<=\S)\*\*(?![\w*])")


@functools.cache
def documented_names() -> dict[str, str]:
    """Full name of the documented object for each public name."""
    rooms = [importlib.import_module(f"sbi_bed.{path.stem}") for path in (HERE / "api").glob("*.rst")]
    return {
        name: f"{room.__name__}.{name}"
        for room in rooms
        for name in room.__all__
        if getattr(room, name).__module__.startswith(room.__name__)
    }


def as_markup(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Treat docstrings as plain text with **bold**: escape stars and bars in formulas, link public names in backticks."""
    if what == "module":
        lines[:] = _with_literal_blocks(lines)
    for number in _prose(lines):
        prose, code = _CODE.split(lines[number])[::2], _CODE.findall(lines[number])
        prose = [_escape(part) for part in prose]
        prose[1:] = ["\\ " + part if part[:1].isalnum() else part for part in prose[1:]]  # ends the preceding markup
        code = [_link(part) for part in code]
        lines[number] = "".join(itertools.chain(*itertools.zip_longest(prose, code, fillvalue="")))


def _escape(text: str) -> str:
    """Escape what reST would read as markup; **bold** stays."""
    parts = [_MARKUP.sub(r"\\\1", part) for part in _BOLD.split(text)]
    return "".join(f"**{part}**" if index % 2 else part for index, part in enumerate(parts))


def _with_literal_blocks(lines: list[str]) -> Iterator[str]:
    """Mark indented formulas and tables, which follow a blank line and unindented text, as literal blocks."""
    above, block = "", False
    for number, line in enumerate(lines):
        if line.strip():
            indented = line.startswith("    ")
            if indented and not block and not lines[number - 1].strip() and not above.startswith(("- ", " ")):
                block = True
                yield from ("::", "")
            block, above = block and indented, above if indented else line
        yield line


def _prose(lines: list[str]) -> Iterator[int]:
    """Numbers of the lines that are neither examples nor code blocks after a double colon."""
    example, code_at = False, None
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        example = bool(line.strip()) and (example or line.lstrip().startswith(">>>"))
        code_at = None if line.strip() and code_at is not None and indent <= code_at else code_at
        if not example and code_at is None:
            yield number
            code_at = indent if line.rstrip().endswith("::") else None


def _link(code: str) -> str:
    target = documented_names().get(code.strip("`"))
    return f":py:obj:`{code.strip('`')} <{target}>`" if target else code


def copy_tutorials(app: Sphinx, config: object) -> None:
    """Copy the tutorials into Sphinx's folder, because Sphinx reads no pages outside it."""
    folder = HERE / "tutorials"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for notebook in sorted(HERE.parent.glob("[0-9]*.ipynb")):
        shutil.copy(notebook, folder)


def setup(app: Sphinx) -> None:
    """Register the above. Priority 400 runs before napoleon (500), which turns the sections of docstrings into markup."""
    app.add_directive("room", Room)
    app.connect("autodoc-process-docstring", as_markup, priority=400)
    app.connect("config-inited", copy_tutorials)
