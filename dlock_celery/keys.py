"""The key of one run, from the task's name or its arguments."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from celery.exceptions import ImproperlyConfigured

from dlock_core import LockKeyError
from dlock_core.adapters import KeyTemplate, key_json, key_part, shown

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
        self._by_args = by_args
        self._key: Any = name if key is None else key
        self._signature = signature
        self._template = None if by_args or callable(self._key) else self._checked()

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return the key of one call.

        Raises:
            LockKeyError: An argument has no canonical form.
            TypeError: The arguments do not fit the task.
        """
        if self._template is not None and not self._template.names:
            return self._template.fill({}, where=self._name)
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        if self._by_args:
            return (self._name, *(f"{name}={key_json(value, name)}" for name, value in bound.arguments.items()))
        if self._template is None:
            return _returned(self._key, bound.arguments)
        return self._template.fill(bound.arguments, where=self._name)

    def _checked(self) -> KeyTemplate:
        """Return the key's template, after a look whether the task has the parameters that it names."""
        for part in self._key if isinstance(self._key, tuple) else (self._key,):
            if isinstance(part, bool) or not isinstance(part, str | bytes | int):
                raise ImproperlyConfigured(
                    f"key {shown(part)} is no str, bytes or int, nor a tuple of them, nor a callable"
                )
        try:
            template = KeyTemplate(self._key, names_only=True)
            template.check_names(self._signature.parameters, where="the task")
        except LockKeyError as error:
            raise ImproperlyConfigured(str(error)) from error
        return template


def _returned(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    key = function(**arguments)
    where = "returned by key"
    return tuple(key_part(part, where) for part in key) if isinstance(key, tuple) else key_part(key, where)
