"""The HTTP answer to a request whose lock is held elsewhere.

Flask finds error handlers by the class of an exception, so each status has a class of its own that
is both a LockConflict and werkzeug's exception of that status.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from werkzeug.exceptions import Conflict, HTTPException, Locked, ServiceUnavailable, TooManyRequests

from dlock_core.adapters import shown

if TYPE_CHECKING:
    from werkzeug.sansio.response import Response

__all__ = ["STATUSES", "LockConflict", "check_retry_after", "check_status"]


class LockConflict(HTTPException):
    """The lock is held elsewhere; an HTTP answer of 409 by default, or 423, 429, 503.

    The body names neither the key nor the holder, unless the application runs in debug mode.
    A handler for the status, as in `errorhandler(409)`, goes before one for this class.

    Attributes:
        key: The key that was asked for.
        waited: Seconds that the lock was waited for.
        retry_after: Seconds of the header Retry-After, None for no header.
    """

    key: object
    waited: float
    retry_after: int | None

    description = "This resource is locked by another request. Try again later."

    def __init__(
        self,
        description: str | None = None,
        response: Response | None = None,
        *,
        key: object = None,
        waited: float = 0,
        retry_after: int | None = None,
    ) -> None:
        HTTPException.__init__(self, description, response)  # the statuses' classes have arguments of their own
        self.key = key
        self.waited = waited
        self.retry_after = retry_after

    def get_headers(self, *args: object, **kwargs: object) -> list[tuple[str, str]]:
        """Return the headers of the answer, Retry-After among them where one is set."""
        headers = HTTPException.get_headers(self, *args, **kwargs)  # type: ignore[arg-type]
        if self.retry_after is not None:
            headers.append(("Retry-After", str(self.retry_after)))
        return headers


_KINDS = {409: Conflict, 423: Locked, 429: TooManyRequests, 503: ServiceUnavailable}
# Each class is of both kinds; the description is that of the first.
STATUSES: dict[int, type[LockConflict]] = {
    status: type(f"LockConflict{status}", (LockConflict, kind), {}) for status, kind in _KINDS.items()
}


def check_status(status: object, name: str) -> int:
    """Return the status, or say which there are."""
    if status not in STATUSES or not isinstance(status, int):
        raise ValueError(f"{name}={shown(status)}: give one of {', '.join(map(str, STATUSES))}")
    return status


def check_retry_after(seconds: object, name: str) -> int | None:
    """Return the seconds as the header wants them: whole."""
    if seconds is None or (isinstance(seconds, int) and not isinstance(seconds, bool) and seconds >= 0):
        return seconds
    raise ValueError(f"{name}={shown(seconds)}: give whole seconds, or None for no header Retry-After")
