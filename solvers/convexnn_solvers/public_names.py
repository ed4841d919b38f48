"""Public classes and functions say of themselves where users find them: in pickles, errors and ``help``."""

from __future__ import annotations

from types import FunctionType
from typing import Any


def name_after(package: str, namespace: dict[str, Any]) -> None:
    """Make ``package`` the module of all classes and functions that its ``namespace`` re-exports.

    A pickle refers to a class by module and name. The files below a package may then move without making
    what users have stored unreadable.
    """
    for value in namespace.values():
        if isinstance(value, type | FunctionType) and value.__module__.startswith(f"{package}."):
            value.__module__ = package
