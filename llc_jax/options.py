"""Names and options that a config gives, looked up: what is unknown names the nearest known."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from llc_jax.errors import InputError


def choose(name: str, choices: Mapping[str, Any], what: str) -> Any:
    """Returns the choice of that name.

    Raises:
      InputError: if there is none; it says which there are.
    """
    if name in choices:
        return choices[name]
    known = ", ".join(choice or "''" for choice in sorted(choices))
    raise InputError(f"{what} is one of {known}, not {name!r}.{suggest(name, choices)}")


def bind(function: Callable, options: Mapping[str, Any], what: str) -> Callable:
    """Returns the function with keyword options bound.

    Raises:
      InputError: if the function, or the constructor of the class, has no such option.
    """
    known = keyword_options(function)
    for name in options:
        if name not in known:
            hint = suggest(name, known) or f" It has {', '.join(known) or 'none'}."
            raise InputError(f"{what} has no option {name!r}.{hint}")
    return functools.partial(function, **options)


def keyword_options(function: Callable) -> list[str]:
    """Returns the names of the keyword options of a function, or of a class's constructor."""
    signature_of = function.func if isinstance(function, functools.partial) else function
    # NNX modules hide their constructor's signature behind a metaclass.
    signature_of = signature_of.__init__ if isinstance(signature_of, type) else signature_of
    parameters = inspect.signature(signature_of).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def suggest(name: str, known: Iterable[str]) -> str:
    """Returns " Did you mean ...?" with the known name nearest to a misspelt one, or ""."""
    nearest = difflib.get_close_matches(str(name), list(known), n=1)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
