"""Streamed bodies: a lock that is held until the last chunk is sent, or the client is gone.

The end of the application context is no boundary for a stream: it comes before the first chunk.
The WSGI server closes the body when the client is gone, which it notices when it sends.
"""

from __future__ import annotations

import _thread
import logging
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from werkzeug.wrappers import Response

from dlock_core.adapters import shown

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

    from .handles import BaseHandle

__all__ = ["hold_until_sent", "stream"]

R = TypeVar("R", bound=Response)
log = logging.getLogger("dlock.flask")


def stream(response: R, handle: BaseHandle[Any]) -> R:
    """Let the lock go with the response's body."""
    response.response = _Body(response.response, handle)
    return response


def hold_until_sent(answer: Any, handle: BaseHandle[Any]) -> Any:
    """Let the lock go with the body of what a view returned, if that is still to be made."""
    body = answer[0] if isinstance(answer, tuple) and answer else answer
    if isinstance(body, Response):
        if body.is_streamed:
            stream(body, handle)
        return answer
    if not isinstance(body, Iterator):
        return answer
    held = _Body(body, handle)
    return (held, *answer[1:]) if isinstance(answer, tuple) else held


class _Body(Iterator[Any]):
    """A body that releases once: at its end, at its error, or when it is closed before."""

    def __init__(self, body: Iterable[Any], handle: BaseHandle[Any]) -> None:
        self._chunks = iter(body)
        self._handle = handle
        handle.hand_over()
        self._parts = (self._chunks,) if self._chunks is body else (self._chunks, body)
        # Some servers forget to close. The garbage collector may run anywhere, so it must not wait for anything.
        self._finaliser = weakref.finalize(self, _thread.start_new_thread, _end_unclosed, (self._parts, handle))
        self._finaliser.atexit = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        """Return the next chunk.

        Raises:
            LockLostError: At the end, so that the body is not taken for a good one.
        """
        try:
            return next(self._chunks)
        except StopIteration:
            self._release()
            raise
        except BaseException:
            self.close()
            raise

    def _release(self) -> None:
        if self._finaliser.detach() is not None:
            self._handle.finish()

    def close(self) -> None:
        """End the body early, as a server does whose client is gone."""
        try:
            _close(self._parts)
        finally:
            _quietly(self._release, self._handle)


def _close(parts: tuple[object, ...]) -> None:
    for part in parts:
        if hasattr(part, "close"):
            part.close()  # pyright: ignore[reportAttributeAccessIssue]  # it has it


def _quietly(release: Any, handle: BaseHandle[Any]) -> None:
    """Release where only the log can report a loss."""
    try:
        release()
    except Exception:
        log.exception("key %s: could not be released at the end of a stream", shown(handle.key))


def _end_unclosed(parts: tuple[object, ...], handle: BaseHandle[Any]) -> None:
    log.warning("key %s: the streamed body was not closed; its lock is released now", shown(handle.key))
    try:
        _close(parts)
    finally:
        _quietly(handle.finish, handle)
