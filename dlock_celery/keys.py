"""The key of one run, from the task's name or its arguments."""

from __future__ import annotations

import inspect
import string
from typing import TYPE_CHECKING, Any

from celery.exceptions import ImproperlyConfigured

from .encoding import key_part, key_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from celery import Task

__all__ = ["KeyMaker", "signature_of"]


def signature_of(cls: type[Task[Any, Any]]) -> inspect.Signature:
    """Return the signature that callers of a task see, without `self`."""
    run = inspect.getattr_static(cls, "run")
    if isinstance(run, staticmethod):
        return inspect.signature(run.__func__)
    signature = inspect.signature(run)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


class KeyMaker:
    """Compute the keys of a task's runs.

    Args:
        name: The task's name, the key if nothing else is said.
        key: Text, or a tuple, in which `{customer_id}` stands for the argument of that name; or a callable
            that gets all arguments by name.
        by_args: The task's name and all its arguments are the key.
        signature: Of the task.

    Raises:
        ImproperlyConfigured: The key names a parameter that the task has not, or is none.
    """

    def __init__(self, name: str, key: Any, *, by_args: bool, signature: inspect.Signature) -> None:
        if by_args and key is not None:
            raise ImproperlyConfigured("give key or by_args, not both")
        self._name = name
        self._key = name if key is None else key
        self._signature = signature
        self._by_args = by_args
        self._constant = not by_args and not callable(self._key) and not self._check()

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return the key of one call.

        Raises:
            LockKeyError: An argument has no canonical form.
            TypeError: The arguments do not fit the task.
        """
        if self._constant:
            return self._key
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        if self._by_args:
            return (self._name, *(f"{name}={key_text(value, name)}" for name, value in bound.arguments.items()))
        if callable(self._key):
            return _returned(self._key, bound.arguments)
        return self._filled(self._key, bound.arguments)

    def _filled(self, key: Any, arguments: Mapping[str, Any]) -> Any:
        if isinstance(key, tuple):
            return tuple(self._filled(part, arguments) for part in key)
        if not isinstance(key, str) or not _fields(key):
            return key
        parts = {name: key_part(arguments[name], name) for name in _fields(key)}
        return key.format_map({name: _readable(part) for name, part in parts.items()})

    def _check(self) -> set[str]:
        """Return the names of the parameters that the key needs, after a look whether the task has them."""
        parts = self._key if isinstance(self._key, tuple) else (self._key,)
        for part in parts:
            if isinstance(part, bool) or not isinstance(part, str | bytes | int):
                raise ImproperlyConfigured(f"key {part!r} is no str, bytes or int, nor a tuple of them, nor a callable")
        names = {name for part in parts if isinstance(part, str) for name in self._checked_fields(part)}
        if unknown := names - set(self._signature.parameters):
            raise ImproperlyConfigured(
                f"key {self._key!r} names {', '.join(sorted(unknown))}, which is no parameter of the "
                f"task; it has {', '.join(self._signature.parameters) or 'none'}"
            )
        return names

    def _checked_fields(self, template: str) -> set[str]:
        try:
            fields = list(string.Formatter().parse(template))
        except ValueError as error:
            raise ImproperlyConfigured(f"key {template!r}: {error}") from error
        for _, name, spec, conversion in fields:
            if name is not None and (not name.isidentifier() or spec or conversion):
                raise ImproperlyConfigured(
                    f"key {template!r}: only names of parameters may stand in braces; "
                    "for more give a callable, key=lambda …"
                )
        return _fields(template)


def _fields(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


def _readable(part: str | bytes | int) -> str:
    return f"0x{part.hex()}" if isinstance(part, bytes) else str(part)


def _returned(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    key = function(**arguments)
    where = "returned by key"
    return tuple(key_part(part, where) for part in key) if isinstance(key, tuple) else key_part(key, where)
