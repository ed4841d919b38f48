"""Unknown options are refused in one sentence that says which name was likely meant."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def refuse_unknown(owner: str, given: Iterable[str], known: Sequence[str]) -> None:
    """TypeError for the first name that is none of those known."""
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise TypeError(f"{owner} has no option {name!r}{hint} The options are {', '.join(known)}.")


def options_by_name(function: Callable[P, R]) -> Callable[P, R]:
    """The same function or constructor, whose keyword arguments go through :func:`refuse_unknown`.

    It is called what the user calls: a function by its name, a constructor by the class that is made.
    """
    parameters = inspect.signature(function).parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    constructs = function.__name__ == "__init__"
    known = named[1:] if constructs else named

    @wraps(function)
    def checked(*args: P.args, **given: P.kwargs) -> R:
        refuse_unknown(type(args[0]).__name__ if constructs else function.__name__, given, known)
        return function(*args, **given)

    return checked
