"""Public classes and functions say of themselves where users find them: in pickles, errors and ``help``."""

from __future__ import annotations

from types import FunctionType
from typing import Any, get_type_hints


def name_after(package: str, namespace: dict[str, Any]) -> None:
    """Make ``package`` the module of all classes and functions that its ``namespace`` re-exports.

    A pickle refers to a class by module and name. The files below a package may then move without making
    what users have stored unreadable. Types of fields become those that they name, while the names are those
    of the file: ``typing.get_type_hints`` would look for them in the package.
    """
    for value in namespace.values():
        if isinstance(value, type | FunctionType) and value.__module__.startswith(f"{package}."):
            if isinstance(value, type) and "__annotations__" in vars(value):
                hints = get_type_hints(value, include_extras=True)
                value.__annotations__ = {name: hints[name] for name in value.__annotations__}
            value.__module__ = package
