"""Where the key of a decorated function comes from: a template, a list of names, or a callable."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeAlias

from dlock_core import LockKeyError
from dlock_core.adapters import Key, KeyTemplate, key_part, shown

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["KeySource", "key_maker"]

KeySource: TypeAlias = "Key | list[str] | Callable[..., Any]"
"""A key in whose text `{name}` stands for an argument; a list of arguments' names; or a callable that gets the
arguments and returns the key."""


def key_maker(key: Any, function: Callable[..., Any], name: Callable[[], str]) -> Callable[..., Any]:
    """Return what computes the key of one call.

    Args:
        key: A template over the arguments; a tuple, whose texts are such; a list of arguments'
            names, which stands for the name and their values; or a callable that gets the arguments.
        function: The function that is called.
        name: What the function is called where it runs, such as the endpoint of a view.

    Raises:
        LockKeyError: At once, if no call of the function can have what the template names.
    """
    if callable(key):
        return key  # type: ignore[no-any-return]
    template = KeyTemplate(_template_of(key))
    if not template.names:
        constant = template.fill({}, where=function.__qualname__)
        return lambda *_args, **_kwargs: constant
    signature = inspect.signature(function)
    if not any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values()):
        template.check_names(signature.parameters, where=function.__qualname__)

    def make(*args: Any, **kwargs: Any) -> Any:
        arguments = _arguments(signature, args, kwargs)
        if not template.names <= arguments.keys():  # the name is asked for only here: it may need a request
            template.check_names(arguments, where=name())
        if isinstance(key, list):
            return (name(), *(key_part(arguments[one], one) for one in key))
        return template.fill(arguments, where=function.__qualname__)

    return make


def _template_of(key: Any) -> Any:
    """Return what names the same arguments as a list, or the key itself."""
    if not isinstance(key, list):
        return key
    if not all(name.isidentifier() for name in key):
        raise LockKeyError(f"key {shown(key)}: a list holds names of arguments, and nothing else", key=key)
    return tuple(f"{{{name}}}" for name in key)


def _arguments(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments by their names, with defaults; what another decorator adds is not there yet."""
    bound = signature.bind_partial(*args, **kwargs)
    bound.apply_defaults()
    found = dict(bound.arguments)
    for one in signature.parameters.values():
        if one.kind is one.VAR_KEYWORD:
            found.update(found.pop(one.name))
    return found
