"""Options are checked before a call does anything: unknown ones are refused with the name likely meant."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
R = TypeVar("R")


def refuse_unknown(owner: str, given: Iterable[str], known: Sequence[str]) -> None:
    """TypeError for the first name that is none of those known."""
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise TypeError(f"{owner} has no option {name!r}{hint} The options are {', '.join(known)}.")


def parameter_names(function: Callable[..., object]) -> list[str]:
    """What a function can be given by name, without the object that a method belongs to."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind in named and p.name != "self"]


def by_position(function: Callable[..., object]) -> list[str]:
    """What a function can be given by position, with the object that a method belongs to."""
    placed = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind in placed]


def checked_options(function: Callable[P, R]) -> Callable[P, R]:
    """The same function or constructor, whose options are checked first.

    Keyword arguments go through :func:`refuse_unknown`, unless the function passes its ``**options`` on; what
    goes by name only is refused by position; and what is annotated as ``bool`` must be one: "no" and [False]
    are true. A constructor only keeps what it is given, so its values are checked where they are used. In
    messages a function goes by its name, a constructor by that of the class that is made.
    """
    parameters = inspect.signature(function).parameters.values()
    known, placed = parameter_names(function), by_position(function)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    constructs = function.__name__ == "__init__"
    switches = [] if constructs else [p.name for p in parameters if p.annotation in (bool, "bool")]

    @wraps(function)
    def checked(*args: P.args, **given: P.kwargs) -> R:
        owner = type(args[0]).__name__ if constructs else function.__name__
        if not open_ended:
            refuse_unknown(owner, given, known)
        if len(args) > len(placed):
            others = [name for name in known if name not in placed]
            taken = ", ".join(name for name in placed if name != "self") or "nothing"
            remedy = "; the others go by name" if others or open_ended else ""
            listed = f": {', '.join(others)}" if others else ""
            raise TypeError(f"{owner} takes {taken} by position{remedy}{listed}.")
        values = dict(zip(placed, args, strict=False)) | given
        for name in switches:
            if not isinstance(values.get(name, False), bool | np.bool_):
                raise TypeError(f"{name} must be True or False, not {values[name]!r}.")
        return function(*args, **given)

    return checked
