"""Old names of what was renamed: they work for one release, with a `FutureWarning` that says the new name."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from .warn_user import warn_user

__all__ = ["current_arguments", "old_names", "renamed_arguments"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def old_names(
    room: str, names: dict[str, str], getattr_of_room: Callable[[str], Any] | None = None
) -> Callable[[str], Any]:
    """A module's `__getattr__` that also answers to old names.

    Args:
        room: The module, its `__name__`.
        names: Old name → new name, both of this module.
        getattr_of_room: The module's `__getattr__` so far, if it has one.
    """

    def getattr_with_old_names(name: str) -> Any:
        if name in names:
            warn_user(
                f"{room}.{name} is now {room}.{names[name]}; the old name goes with the next release.", FutureWarning
            )
            return getattr(sys.modules[room], names[name])
        if getattr_of_room is None:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        return getattr_of_room(name)

    return getattr_with_old_names


def renamed_arguments(**names: str) -> Callable[[_Function], _Function]:
    """Decorator of a function that also takes old names of its arguments.

    Args:
        **names: Old name → new name.

    Example:
        >>> @renamed_arguments(width="hidden_dim")
        ... def build(hidden_dim=8):
        ...     return hidden_dim
        >>> build(hidden_dim=4)
        4
    """

    def decorate(function: _Function) -> _Function:
        @functools.wraps(function)
        def with_old_names(*args: Any, **kwargs: Any) -> Any:
            for old, new in names.items():
                if old in kwargs:
                    if new in kwargs:
                        raise TypeError(
                            f"{function.__qualname__} got {new}= and its old name {old}=: give only {new}=."
                        )
                    warn_user(f"{old}= is now {new}=; the old name goes with the next release.", FutureWarning)
                    kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        with_old_names.old_arguments = names  # pyright: ignore[reportAttributeAccessIssue]  for `current_arguments`
        return with_old_names  # pyright: ignore[reportReturnType]

    return decorate


def current_arguments(function: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments by their present names, without a warning: for those that an earlier version wrote into a file.

    Args:
        function: What takes them; `renamed_arguments` knows their old names.
        arguments: Arguments by old or new names.
    """
    names = getattr(function, "old_arguments", {})
    return {names.get(name, name): value for name, value in arguments.items()}
