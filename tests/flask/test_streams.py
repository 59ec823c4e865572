"""`hold` and `stream`: to the end of the context, and to the end of a body."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flask
import pytest

from dlock_core import LockStateError
from dlock_flask import DLock

from .places import Place, Site, until


def chunks() -> Iterator[str]:
    """Make a body of three chunks."""
    yield from "abc"


def test_a_held_lock_ends_with_the_request(place: Place, site: Site) -> None:
    """Also when the view fails."""

    @site.app.get("/export")
    def view() -> str:
        site.dlock.hold("export")
        assert place.witness.holders() == 1
        flask.abort(404) if "fail" in flask.request.args else None
        return "done"

    assert site.get("/export").text == "done"
    assert place.witness.holders() == 0
    assert site.get("/export?fail").status_code == 404
    assert place.witness.holders() == 0
    with place.held("export"):
        assert site.get("/export").status_code == 409


def test_a_held_lock_ends_with_an_application_context(place: Place, site: Site) -> None:
    """Of a script, say; several end together."""
    with site.app.app_context():
        site.dlock.hold("one")
        site.dlock.hold("two")
        assert place.witness.holders() == 2
        assert [handle.key for handle in site.dlock.held()] == ["one", "two"]
    assert place.witness.holders() == 0


def test_a_held_lock_ends_at_the_latest_with_the_block_of_a_test_client(place: Place, site: Site) -> None:
    """`with client:` keeps the context; Flask to 3.1 tears it down before, too, and later ones only then."""

    @site.app.get("/export")
    def view() -> str:
        site.dlock.hold("export")
        return "done"

    with site.app.test_client() as client:
        assert client.get("/export").text == "done"
        assert flask.request.path == "/export"
    assert place.witness.holders() == 0


def test_a_held_lock_can_be_released_before(place: Place, site: Site) -> None:
    """By its handle, once."""
    with site.app.app_context():
        handle = site.dlock.hold("export")
        handle.release()
        assert place.witness.holders() == 0
        site.dlock.hold("export")
    assert place.witness.holders() == 0


def test_a_stream_keeps_the_lock_to_its_last_chunk(place: Place, site: Site) -> None:
    """Beyond the end of the request, which comes before the first chunk."""

    @site.app.get("/export")
    def view() -> flask.Response:
        return site.dlock.stream(flask.Response(chunks()), site.dlock.hold("export"))

    body = site.get("/export").iter_encoded()
    seen = [(chunk, place.witness.holders()) for chunk in body]
    assert seen == [(b"a", 1), (b"b", 1), (b"c", 1)]
    assert place.witness.holders() == 0


def test_a_stream_with_the_requests_context_keeps_the_lock_too(place: Place, site: Site) -> None:
    """Flask ends that context before the first chunk and again after the last."""

    @site.app.get("/export")
    def view() -> flask.Response:
        def rows() -> Iterator[str]:
            yield flask.request.path
            yield str(place.witness.holders())

        return site.dlock.stream(flask.Response(flask.stream_with_context(rows())), site.dlock.hold("export"))

    assert site.get("/export").text == "/export1"
    assert place.witness.holders() == 0


def test_a_lock_can_be_taken_inside_the_stream(place: Place, site: Site) -> None:
    """Made in the view, which knows the application; entered where the work is."""

    @site.app.get("/export")
    def view() -> flask.Response:
        lock = site.dlock.lock("export")

        def rows() -> Iterator[str]:
            with lock:
                yield from chunks()

        return flask.Response(rows())

    answer = site.get("/export")
    seen = [place.witness.holders() for _ in answer.iter_encoded()]
    assert seen == [1, 1, 1]
    assert place.witness.holders() == 0


def test_a_stream_out_of_a_with_block_takes_the_lock_along(place: Place, site: Site) -> None:
    """The end of the block then releases nothing."""

    @site.app.get("/export")
    def view() -> flask.Response:
        with site.dlock.lock("export") as handle:
            return site.dlock.stream(flask.Response(chunks()), handle)

    answer = site.get("/export")
    assert place.witness.holders() == 1
    answer.close()
    assert place.witness.holders() == 0


@pytest.mark.parametrize("read", [0, 1])
def test_a_client_that_leaves_frees_the_lock(place: Place, site: Site, read: int) -> None:
    """The server closes the body: before the first chunk, or after some; its own clean-up runs first."""
    order = []

    @site.app.get("/export")
    def view() -> flask.Response:
        def rows() -> Iterator[str]:
            try:
                yield from chunks()
            finally:
                order.append(place.witness.holders())

        return site.dlock.stream(flask.Response(rows()), site.dlock.hold("export"))

    answer = site.get("/export", buffered=False)
    body = iter(answer.iter_encoded())
    for _ in range(read):
        next(body)
    answer.close()
    assert place.witness.holders() == 0
    assert order == [1]


def test_an_error_in_the_stream_frees_the_lock(place: Place, site: Site) -> None:
    """And is not hidden."""

    @site.app.get("/export")
    def view() -> flask.Response:
        def rows() -> Iterator[str]:
            yield "a"
            raise ZeroDivisionError

        return site.dlock.stream(flask.Response(rows()), site.dlock.hold("export"))

    with pytest.raises(ZeroDivisionError):
        _ = site.get("/export").text
    assert place.witness.holders() == 0


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_answer_that_an_error_stopped_keeps_no_lock(
    place: Place, site: Site, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """It will never be sent, even if a caller still has it in hand."""
    kept = []

    @site.app.get("/sync")
    def view() -> str:
        with site.dlock.lock("export") as handle:
            kept.append(site.dlock.stream(flask.Response(chunks()), handle))
            flask.abort(404)

    @site.app.get("/async")
    async def async_view() -> str:
        async with site.dlock.alock("export") as handle:
            kept.append(site.dlock.stream(flask.Response(chunks()), handle))
            flask.abort(404)

    assert site.get(f"/{kind}").status_code == 404
    assert place.witness.holders() == 0
    kept[0].close()
    assert not caplog.records


def test_a_file_is_sent_under_its_lock(place: Place, site: Site, tmp_path: Path) -> None:
    """Werkzeug hands a file to the server as it is, without its own end of the response."""
    (tmp_path / "export.csv").write_text("a,b")

    @site.app.get("/export")
    def view() -> flask.Response:
        return site.dlock.stream(flask.send_file(tmp_path / "export.csv"), site.dlock.hold("export"))

    answer = site.get("/export")
    assert place.witness.holders() == 1
    assert answer.text == "a,b"
    answer.close()
    assert place.witness.holders() == 0


def test_an_answer_to_head_frees_the_lock(place: Place, site: Site) -> None:
    """Its body is never asked for."""

    @site.app.get("/export")
    def view() -> flask.Response:
        return site.dlock.stream(flask.Response(chunks()), site.dlock.hold("export"))

    site.app.test_client().head("/export").close()
    assert place.witness.holders() == 0


def test_an_unclosed_body_frees_the_lock_when_it_is_abandoned(
    place: Place, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """The last resort, with a warning: some servers forget to close, and some code forgets the response."""

    @site.app.get("/export")
    def view() -> str:
        site.dlock.stream(flask.Response(chunks()), site.dlock.hold("export"))
        return "another answer"

    with caplog.at_level(logging.WARNING, "dlock.flask"):
        assert site.get("/export").text == "another answer"
        gc.collect()
        until(lambda: place.witness.holders() == 0, "the lock to be free")
    until(lambda: "the streamed body was not closed" in caplog.text, "the warning")


def test_a_reentrant_lock_of_a_stream_outlasts_the_view(place: Place, site: Site) -> None:
    """Two handles, one lock, one release: the last."""

    @site.app.get("/export")
    def view() -> flask.Response:
        site.dlock.hold("export")
        return site.dlock.stream(flask.Response(chunks()), site.dlock.hold("export", reentrant=True))

    answer = site.get("/export")
    assert place.witness.holders() == 1
    answer.close()
    assert place.witness.holders() == 0


def test_only_a_handle_that_has_its_lock_can_be_streamed(sqlite: Place) -> None:
    """After the `with` block it is too late."""
    site = sqlite.site()
    with site.app.test_request_context():
        with site.dlock.lock("export") as handle:
            pass
        with pytest.raises(LockStateError, match="does not have the lock"):
            site.dlock.stream(flask.Response(chunks()), handle)


def test_no_error_of_ours_keeps_others_from_their_clean_up(sqlite: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Flask stops at the first teardown function that raises."""
    torn_down: list[Any] = []
    app, dlock = flask.Flask("clean"), DLock()
    app.config["DLOCK_URL"] = sqlite.url
    app.teardown_appcontext(torn_down.append)  # registered first, so it runs last
    dlock.init_app(app)
    with app.app_context():
        dlock.hold("export")
        sqlite.witness.break_lock()  # the lock file is gone, as if a cleaner had been there
    assert len(torn_down) == 1
    assert "could not be released at the end of the context" in caplog.text
    with app.app_context():
        dlock.close()
