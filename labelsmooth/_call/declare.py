"""A signature declared once, as a dataclass, for every function and class that takes it.

Type checkers read it from the decorators' types, `inspect.signature` and Sphinx from
`__signature__`; what is called is the plain function.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

from typing_extensions import dataclass_transform

P = ParamSpec("P")
T = TypeVar("T")


@dataclass_transform()
def declared(cls: type[T]) -> type[T]:
    """A frozen dataclass. Type checkers do not hear that it is frozen: the attributes of a module,
    whose types are taken from here, may be set."""
    return dataclass(frozen=True)(cls)


def set_signature(function: Any, declaration: Callable[..., Any], returns: Any) -> None:
    signature = inspect.signature(declaration)
    function.__signature__ = signature.replace(return_annotation=returns)


def initialiser_of(
    declaration: Callable[P, Any],
) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, P], None]]:
    """For an `__init__` that takes what is declared."""

    def decorate(function: Callable[..., None]) -> Callable[Concatenate[Any, P], None]:
        set_signature(function, declaration.__init__, None)
        return function

    return decorate


def options_of(
    declaration: Callable[..., T],
    function: Callable[..., Any],
    first: tuple[Any, ...],
    /,
    *positional: Any,
    **keywords: Any,
) -> T:
    """The options of a call of the function or class, whose first arguments are no options.

    Raises TypeError in its name where it does not take all of these.
    """
    try:
        return declaration(*positional, **keywords)
    except TypeError:
        try:
            inspect.signature(function).bind(*first, *positional, **keywords)
        except TypeError as error:
            raise TypeError(f"{function.__name__}() {error}") from None
        raise
