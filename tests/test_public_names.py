"""Every public name says what it is, and shows it: docstrings of all names, methods, fields and attributes, and examples
that run.

Public is what the rooms export. An attribute that a class sets has a line under `Attributes:`, or under `Args:` where an
argument is kept under its name. What a base class says about a method, field or attribute counts for its subclasses: they
need not repeat it. An example is a doctest in the docstring. A class needs none of its own where a function or class that
has one returns it or holds it, or a public subclass has one.
"""

import ast
import dataclasses
import importlib.util
import inspect
import re
import textwrap
from types import SimpleNamespace

import optional_examples
import pytest

TRAIN = {"DAD", "ContextDAD", "ModelComparison", "ContextNPE", "HistoryNPE", "ActorTrainer", "PerceptionTrainer"}
TRAIN |= {"ImitationTrainer", "StepTrainer", "EpochTrainer", "StepDAD", "refine_policy", "step_dad_information_gain"}
TRAIN |= {"train_ensemble"}
ROOMS = ("analysis", "diagnostics", "inference", "neural_nets", "objectives", "policies", "simulators", "utils")


def public_names(room):
    """Name -> what a room exports under it, without what it hands on from a lower room."""
    module = importlib.import_module(f"sbi_bed.{room}")
    members = {name: getattr(module, name) for name in module.__all__}
    return {name: value for name, value in members.items() if value.__module__.startswith(module.__name__)}


def own_docstring(value):
    """Docstring that was written for it: not a base's, and not the signature that a dataclass would show."""
    text = (vars(value).get("__doc__") if isinstance(value, type) else value.__doc__) or ""
    return "" if isinstance(value, type) and text.startswith(f"{value.__name__}(") else text


def our_bases(value):
    """A class of this package and its bases of this package."""
    return [base for base in value.__mro__ if base.__module__.startswith("sbi_bed")]


def has_docstring(value, name):
    """Whether a class, or a base of this package, says what the method or property is."""
    return any((getattr(vars(base).get(name), "__doc__", None) or "").strip() for base in our_bases(value))


def public_methods(value):
    """Methods and properties of a class that this package defines, by name; those of bases, too."""
    for name in (name for name in dir(value) if not name.startswith("_")):
        owner = next((base for base in value.__mro__ if name in vars(base)), object)
        member = inspect.getattr_static(value, name)
        member = member.__func__ if isinstance(member, (staticmethod, classmethod)) else member
        is_method = inspect.isfunction(member) or (hasattr(member, "__get__") and hasattr(member, "__doc__"))
        if owner.__module__.startswith("sbi_bed") and is_method and not isinstance(member, type):
            yield name, member


def public_fields(value):
    """Fields of a dataclass or named tuple."""
    names = [field.name for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    return [name for name in (*names, *getattr(value, "_fields", ())) if not name.startswith("_")]


@pytest.mark.parametrize("room", ROOMS)
def test_names_methods_and_fields_have_docstrings(room):
    missing = []
    for name, value in public_names(room).items():
        text = own_docstring(value)
        missing += [] if text else [name]
        if isinstance(value, type):
            fields, texts = public_fields(value), " ".join(map(own_docstring, our_bases(value)))
            missing += [f"{name}.{field}" for field in fields if not re.search(rf"\b{field}\b", texts)]
            missing += [
                f"{name}.{method}"
                for method, _ in public_methods(value)
                if method not in fields and not has_docstring(value, method)
            ]
    assert not missing


def attributes_set(cls):
    """Public names that the methods of a class assign on `self` or register as buffers."""
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(cls)))):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            name = node.attr if isinstance(node.value, ast.Name) and node.value.id == "self" else "_"
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "register_buffer":
            name = getattr(node.args[0], "value", "_")
        else:
            continue
        if not name.startswith("_"):
            yield name


def lines_of(section, text):
    """Names that have a line in a section of a docstring."""
    found = re.search(rf"^{section}:\n((?: .*\n|\n)*)", inspect.cleandoc(text) + "\n", re.MULTILINE)
    return set(re.findall(r"^    (\w+):", found[1], re.MULTILINE)) if found else set()


@pytest.mark.parametrize("room", ROOMS)
def test_attributes_have_lines_in_docstrings(room):
    missing = []
    for name, value in public_names(room).items():
        ours = our_bases(value) if isinstance(value, type) else []
        texts = [own_docstring(base) for base in ours]
        known = set().union(*(lines_of(section, text) for text in texts for section in ("Args", "Attributes")))
        known |= {method for method, _ in public_methods(value)} if ours else set()
        sets = {attribute for base in ours for attribute in attributes_set(base)}
        missing += [f"{name}.{attribute}" for attribute in sorted(sets - known)]
    assert not missing


def test_an_attribute_without_a_line_is_found():
    class Half:
        """Args:
            kept: Kept.

        Attributes:
            made: Made.
        """

        def __init__(self, kept, other):
            self.kept, self._hidden, self.other = kept, 0, other
            self.made: int = 1
            self.register_buffer("table", None)

    assert sorted(attributes_set(Half)) == ["kept", "made", "other", "table"]
    assert lines_of("Args", own_docstring(Half)) == {"kept"} and lines_of("Attributes", own_docstring(Half)) == {"made"}


def test_what_a_base_class_says_need_not_be_said_again():
    """The same classes as if they were of this package."""

    class Base:
        """Something.

        Args:
            kept: Kept.
        """

        def update(self):
            """Update."""

    class Twin(Base):
        """Another one."""

        def update(self):
            pass

        def undocumented(self):
            pass

    for one in (Base, Twin):
        one.__module__ = "sbi_bed.twins"
    assert our_bases(Twin) == [Twin, Base] and lines_of("Args", own_docstring(Base)) == {"kept"}
    assert has_docstring(Twin, "update") and not has_docstring(Twin, "undocumented")


def annotations(value):
    """Types that a function, or a class with its methods, properties and fields, hands to its caller, as one text."""
    if isinstance(value, type):
        members = [member for _, member in public_methods(value)]
        return " ".join([str(vars(value).get("__annotations__", "")), *map(annotations, members)])
    function = getattr(value, "fget", value)
    return str(inspect.signature(function).return_annotation) if inspect.isfunction(function) else ""


@pytest.fixture(scope="module")
def shown():
    """Names that have an example, by themselves, with a subclass or with what returns them."""
    everything = {name: value for room in ROOMS for name, value in public_names(room).items()}
    names = {name for name, value in everything.items() if ">>>" in own_docstring(value)}
    names |= {
        base.__name__ for name in names if isinstance(everything[name], type) for base in everything[name].__mro__
    }
    while True:
        handed_out = set(
            re.findall(r"\w+", " ".join(annotations(everything[name]) for name in names & set(everything)))
        )
        more = {name for name, value in everything.items() if name in handed_out and isinstance(value, type)} - names
        if not more:
            return names
        names |= more


@pytest.mark.parametrize("room", ROOMS)
def test_names_have_examples(room, shown):
    assert not set(public_names(room)) - shown


@pytest.mark.parametrize("room", ROOMS)
def test_examples_run(room):
    """None is code that no doctest sees."""
    for name, value in public_names(room).items():
        members = [member for _, member in public_methods(value)] if isinstance(value, type) else []
        assert not any("Example::" in (one.__doc__ or "") for one in (value, *members)), name


def test_examples_whose_package_is_missing_are_skipped(monkeypatch):
    everything = {name for room in ROOMS for name in public_names(room)}
    assert not set(optional_examples.NEEDED) - everything
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    optional_examples.pytest_runtest_setup(SimpleNamespace(name="sbi_bed.utils.packing.groups.pack_groups"))
    for name, package in optional_examples.NEEDED.items():
        with pytest.raises(pytest.skip.Exception, match=f"needs {package}"):
            optional_examples.pytest_runtest_setup(SimpleNamespace(name=f"sbi_bed.analysis.file.{name}"))


def public_signatures():
    """Name -> parameters of each public function and of each public method of the package."""
    for room in ROOMS:
        for name, value in public_names(room).items():
            members = [(name, value)]
            if isinstance(value, type):
                members += [(f"{name}.{method}", member) for method, member in public_methods(value)]
            for full_name, member in members:
                if inspect.isfunction(member) or (isinstance(member, type) and not dataclasses.is_dataclass(member)):
                    yield full_name, inspect.signature(member).parameters


def test_one_way_to_say_things():
    """The table in CONTRIBUTING.md."""
    signatures = dict(public_signatures())
    assert len(signatures) > 500
    for name, parameters in signatures.items():
        if "seed" in parameters and name not in ("seeded", "train_ensemble"):  # there the seed is what it is about
            assert parameters["seed"].kind is inspect.Parameter.KEYWORD_ONLY, name
        if "sample_with" in parameters:
            assert parameters["sample_with"].default in ("smc", None), name
        assert not parameters.keys() & {"width", "n_steps", "n_trials", "refinement"}, name
        if "show_progress_bars" in parameters:
            default = parameters["show_progress_bars"].default
            assert default in (name.split(".")[0] in TRAIN, inspect.Parameter.empty), name
