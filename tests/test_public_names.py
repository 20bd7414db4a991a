"""Every public name says what it is, and shows it: docstrings of all names, methods and fields, and examples that run.

Public is what the rooms export. An example is a doctest in the docstring. A class needs none of its own where
a function or class that has one returns it or holds it, or a public subclass has one.
"""

import dataclasses
import importlib
import inspect
import re

import pytest

ROOMS = ("analysis", "diagnostics", "inference", "neural_nets", "objectives", "policies", "simulators", "utils")

# Their examples need an optional package: code in the docstring that is not run.
NEED_ARVIZ = {"to_arviz", "power_scaling_by_importance"}

# Exported names that still lack an example. A name that has got one must leave the list.
WITHOUT_EXAMPLE: dict[str, set[str]] = {
    "analysis": {
        "plot_response_bands",
        "plot_ridge",
    },
    "diagnostics": {
        "ModelSensitivity",
        "PriorSensitivity",
        "prior_sensitivity",
    },
    "inference": {
        "ContextModelPosterior",
    },
    "objectives": {
        "LikelihoodBound",
        "LocalProposal",
        "NWJ",
        "RatioBound",
        "estimate_bounds",
        "log_likelihood_of_history",
        "log_model_probs",
        "log_sum_likelihood",
        "model_gain_loss",
        "pathwise_loss",
        "score_function_loss",
        "snmc",
        "spce",
    },
    "simulators": {
        "UniformRange",
        "pack_responses",
    },
}


def public_names(room):
    """Name -> what a room exports under it, without what it hands on from a lower room."""
    module = importlib.import_module(f"sbi_bed.{room}")
    members = {name: getattr(module, name) for name in module.__all__}
    return {name: value for name, value in members.items() if value.__module__.startswith(module.__name__)}


def own_docstring(value):
    """Docstring that was written for it: not a base's, and not the signature that a dataclass would show."""
    text = (vars(value).get("__doc__") if isinstance(value, type) else value.__doc__) or ""
    return "" if isinstance(value, type) and text.startswith(f"{value.__name__}(") else text


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
            fields = public_fields(value)
            missing += [f"{name}.{field}" for field in fields if not re.search(rf"\b{field}\b", text)]
            missing += [
                f"{name}.{method}"
                for method, member in public_methods(value)
                if method not in fields and not (member.__doc__ or "").strip()
            ]
    assert not missing


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
    names = {name for name, value in everything.items() if ">>>" in own_docstring(value)} | NEED_ARVIZ
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
    names = set(public_names(room))
    assert names - shown == WITHOUT_EXAMPLE.get(room, set()) & names


def test_examples_that_need_an_optional_package_are_there():
    for room in ROOMS:
        names = public_names(room)
        for name in NEED_ARVIZ & set(names):
            assert "Example::" in own_docstring(names[name])
