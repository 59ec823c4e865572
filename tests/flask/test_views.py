"""`@dlock.locked(key)`: where the key comes from, which requests are locked, what the view still is."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from uuid import UUID

import flask
import pytest
from flask.views import MethodView, View

from dlock_core import LockKeyError, LockKeyTypeError

from .places import Place, Site


def keys(site: Site) -> str:
    """Return the keys that are held in this request, as a view's answer."""
    return " ".join(repr(handle.key) for handle in site.dlock.held())


def test_a_template_is_filled_from_the_arguments_of_the_route(place: Place, site: Site) -> None:
    """Another document is another lock."""

    @site.app.get("/docs/<int:doc_id>")
    @site.dlock.locked("doc:{doc_id}")
    def doc(doc_id: int) -> str:
        return f"{doc_id} under {keys(site)}"

    with place.held("doc:7"):
        assert site.get("/docs/7").status_code == 409
        assert site.get("/docs/8").text == "8 under 'doc:8'"
    assert site.get("/docs/7").status_code == 200


def test_a_lock_above_its_route_is_refused_at_the_first_request(sqlite: Place) -> None:
    """Flask serves the function without the lock; nothing else would tell."""
    site = sqlite.site()

    @site.dlock.locked("k")
    @site.app.get("/wrong")
    def wrong() -> str:
        return "unlocked"

    @site.app.get("/other")
    def other() -> str:
        return "never served"

    for path in ("/other", "/wrong"):
        with pytest.raises(TypeError, match=r"endpoint 'wrong': @dlock\.locked stands above its route"):
            site.get(path)


def test_a_blueprint_s_lock_above_its_route_is_refused_too(sqlite: Place) -> None:
    """It is registered later."""
    site, blueprint = sqlite.site(), flask.Blueprint("docs", __name__)

    @site.dlock.locked("k")
    @blueprint.get("/wrong")
    def wrong() -> str:
        return "unlocked"

    site.app.register_blueprint(blueprint)
    with pytest.raises(TypeError, match=r"endpoint 'docs\.wrong'"):
        site.get("/wrong")


def test_one_view_may_serve_many_applications(sqlite: Place) -> None:
    """As a factory makes them, each with a lock around it."""
    sites = [sqlite.site() for _ in range(3)]

    def view() -> str:
        return keys(sites[0])

    for site in sites:
        site.app.add_url_rule("/", "view", sites[0].dlock.locked("k")(view))
    assert [site.get("/").text for site in sites] == ["'k'"] * 3


def test_one_function_may_be_served_with_and_without_a_lock(sqlite: Place) -> None:
    """Under other decorators, too."""
    site = sqlite.site()

    def view() -> str:
        return keys(site)

    @functools.wraps(view)
    def outer() -> Any:
        return locked()

    locked = site.dlock.locked("k")(view)
    outer.__wrapped__ = locked
    site.app.add_url_rule("/plain", "plain", view)
    site.app.add_url_rule("/locked", "locked", outer)
    assert site.get("/plain").text == ""
    assert site.get("/locked").text == "'k'"


def test_a_default_of_the_view_fills_the_template_too(sqlite: Place) -> None:
    """One view, two routes, one lock for what is the same."""
    site = sqlite.site()

    @site.app.get("/docs")
    @site.app.get("/docs/<int:doc_id>")
    @site.dlock.locked("doc:{doc_id}")
    def doc(doc_id: int = 1) -> str:
        return keys(site)

    assert site.get("/docs").text == site.get("/docs/1").text == "'doc:1'"


def test_a_list_of_names_means_the_endpoint_and_their_values(sqlite: Place) -> None:
    """So two views never share such a lock."""
    site = sqlite.site()

    @site.app.get("/docs/<uuid:doc_id>/<lang>/<int:page>")
    @site.dlock.locked(["doc_id", "page"])
    def doc(doc_id: UUID, lang: str, page: int) -> str:
        return keys(site)

    identity = "0b5eb1c5-94a5-4f5b-8a3e-4f1c1f1d2b3a"
    assert site.get(f"/docs/{identity}/de/3").text == f"('doc', '{identity}', 3)"


def test_a_callable_gets_the_arguments_and_has_the_request(sqlite: Place) -> None:
    """For keys that are not in the route."""
    site = sqlite.site()

    @site.app.get("/docs/<int:doc_id>")
    @site.dlock.locked(lambda doc_id: ("doc", doc_id, flask.request.args["lang"]))
    def doc(doc_id: int) -> str:
        return keys(site)

    assert site.get("/docs/7?lang=de").text == "('doc', 7, 'de')"


def test_a_tuple_has_its_texts_filled(sqlite: Place) -> None:
    """And its other parts left alone."""
    site = sqlite.site()

    @site.app.get("/docs/<int:doc_id>")
    @site.dlock.locked(("doc", "{doc_id}", 3))
    def doc(doc_id: int) -> str:
        return keys(site)

    assert site.get("/docs/7").text == "('doc', '7', 3)"


def test_a_blueprints_own_argument_is_part_of_the_key(place: Place, site: Site) -> None:
    """Two tenants do not wait for each other."""
    blueprint = flask.Blueprint("tenant", __name__, url_prefix="/<tenant>")

    @blueprint.get("/docs/<int:doc_id>")
    @site.dlock.locked("{tenant}:doc:{doc_id}")
    def doc(tenant: str, doc_id: int) -> str:
        return keys(site)

    site.app.register_blueprint(blueprint)
    with place.held("acme:doc:7"):
        assert site.get("/acme/docs/7").status_code == 409
        assert site.get("/apex/docs/7").text == "'apex:doc:7'"


def test_a_method_view_is_locked_by_its_decorators(place: Place, site: Site) -> None:
    """For the methods that are named; the others stay free."""

    class Doc(MethodView):
        decorators = [site.dlock.locked("doc:{doc_id}", methods=["PUT"])]  # noqa: RUF012 - as Flask has it

        def get(self, doc_id: int) -> str:
            return f"read {keys(site)}"

        def put(self, doc_id: int) -> str:
            return f"wrote {keys(site)}"

    site.app.add_url_rule("/docs/<int:doc_id>", view_func=Doc.as_view("doc"))
    with place.held("doc:7"):
        assert site.get("/docs/7").text == "read "
        assert site.app.test_client().put("/docs/7").status_code == 409
    assert site.app.test_client().put("/docs/7").text == "wrote 'doc:7'"


def test_one_method_of_a_method_view_can_be_locked(sqlite: Place) -> None:
    """`self` is no obstacle."""
    site = sqlite.site()

    class Doc(MethodView):
        @site.dlock.locked("doc:{doc_id}")
        def put(self, doc_id: int) -> str:
            return keys(site)

    site.app.add_url_rule("/docs/<int:doc_id>", view_func=Doc.as_view("doc"))
    assert site.app.test_client().put("/docs/7").text == "'doc:7'"


def test_an_argument_that_the_view_lacks_is_found_at_once(sqlite: Place) -> None:
    """Never a lock that all documents share by mistake."""
    dlock = sqlite.site().dlock
    with pytest.raises(LockKeyError, match=r"'doc:\{document\}': .*doc has nothing for document; it has doc_id"):

        @dlock.locked("doc:{document}")
        def doc(doc_id: int) -> str:
            return ""


def test_an_argument_that_the_route_lacks_is_found_at_the_first_request(sqlite: Place) -> None:
    """Where the view takes whatever comes; the error names the route's endpoint and the argument."""
    site = sqlite.site()

    class Doc(View):
        decorators = [site.dlock.locked("doc:{document}")]  # noqa: RUF012

        def dispatch_request(self, **arguments: Any) -> str:
            return ""

    site.app.add_url_rule("/docs/<int:doc_id>", view_func=Doc.as_view("show_doc"))
    with pytest.raises(LockKeyError, match="show_doc has nothing for document; it has doc_id"):
        site.get("/docs/7")


def test_an_argument_of_another_decorator_does_not_disturb(sqlite: Place) -> None:
    """A view often gets a user, say, from a decorator below."""
    site = sqlite.site()

    def with_user(view: Any) -> Any:
        return lambda **arguments: view("Ada", **arguments)

    @site.app.get("/docs/<int:doc_id>", endpoint="doc")
    @site.dlock.locked("doc:{doc_id}")
    @with_user
    def doc(user: str, doc_id: int) -> str:
        return f"{user} {keys(site)}"

    assert site.get("/docs/7").text == "Ada 'doc:7'"


def test_an_object_is_refused_as_part_of_a_key(sqlite: Place) -> None:
    """Its default text has its address in it, so each request would have a lock of its own."""
    site = sqlite.site()

    class Doc:
        id = 7

    @site.dlock.locked("doc:{doc}")
    def wrong(doc: Doc) -> str:
        return ""

    @site.dlock.locked("doc:{doc.id}:{price}")
    def right(doc: Doc, price: Decimal) -> str:
        return keys(site)

    with site.app.test_request_context():
        with pytest.raises(LockKeyTypeError, match=r"argument doc is a \S*Doc, .*\{doc\.id\}"):
            wrong(Doc())
        assert right(Doc(), Decimal("1.50")) == "'doc:7:1.5'"


def test_options_requests_are_not_locked(place: Place, site: Site) -> None:
    """Browsers send them beforehand."""

    @site.app.route("/export", methods=["POST", "OPTIONS"], provide_automatic_options=False)
    @site.dlock.locked("export")
    def view() -> str:
        return flask.request.method

    with place.held("export"):
        assert site.app.test_client().options("/export").text == "OPTIONS"
        assert site.app.test_client().post("/export").status_code == 409


def test_an_async_view_is_awaited_under_its_lock(place: Place, site: Site) -> None:
    """It stays a coroutine function, by which Flask decides."""
    seen = []

    @site.dlock.locked("doc:{doc_id}")
    async def doc(doc_id: int) -> str:
        seen.append(place.witness.holders())
        return keys(site)

    assert inspect.iscoroutinefunction(doc)
    site.app.add_url_rule("/docs/<int:doc_id>", view_func=doc)
    with place.held("doc:7"):
        assert site.get("/docs/7").status_code == 409
    assert [site.get("/docs/7").text for _ in range(2)] == ["'doc:7'"] * 2
    assert seen == [1, 1]


def test_async_views_may_lock_one_after_the_other(place: Place, site: Site) -> None:
    """Each request has an event loop of its own; nothing of ours belongs to one."""

    @site.app.get("/export")
    async def view() -> str:
        async with site.dlock.alock("export", timeout=30) as handle:
            assert place.witness.holders() == 1
            return f"{handle.held}"

    assert [site.get("/export").status_code for _ in range(3)] == [200] * 3


def test_an_async_lock_that_is_held_answers_409(place: Place, site: Site) -> None:
    """And one that is worth waiting for is waited for without holding up the loop."""
    ticks = []

    @site.app.get("/export/<float:timeout>")
    async def view(timeout: float) -> str:
        async def tick() -> None:
            while True:
                await asyncio.sleep(0.01)
                ticks.append(1)

        ticking = asyncio.create_task(tick())
        try:
            async with site.dlock.alock("export", timeout=timeout):
                return "in"
        finally:
            ticking.cancel()

    with place.held("export"):
        assert site.get("/export/0.0").status_code == 409
        ticks.clear()
        assert site.get("/export/0.5").status_code == 409
        assert len(ticks) > 3


def test_an_async_lock_is_free_after_an_exception(place: Place, site: Site) -> None:
    """And can be released early, and entered by its own task only."""

    @site.app.get("/export")
    async def view() -> str:
        async with site.dlock.alock("export"):
            async with site.dlock.alock("export", reentrant=True) as inner:
                await inner.release()
                assert place.witness.holders() == 1
            flask.abort(404)

    assert site.get("/export").status_code == 404
    assert place.witness.holders() == 0


@pytest.mark.parametrize("last", ["sync", "async"])
def test_sync_code_of_an_async_view_may_enter_its_lock_again(place: Place, site: Site, last: str) -> None:
    """And the other way round; the one lock is released by the one that leaves last."""

    @site.app.get("/export")
    async def view() -> str:
        if last == "sync":
            async with site.dlock.alock("export"):
                inner = site.dlock.hold("export", reentrant=True)
            assert place.witness.holders() == 1
            inner.release()
            return "done"
        outer = site.dlock.hold("export")
        async with site.dlock.alock("export", reentrant=True):
            outer.release()
            assert place.witness.holders() == 1
        return "done"

    assert site.get("/export").text == "done"
    assert place.witness.holders() == 0


def test_a_streamed_answer_of_a_locked_view_is_part_of_it(place: Place, site: Site) -> None:
    """The lock is held to the last chunk, whatever form the stream has."""

    @site.app.get("/export/<form>")
    @site.dlock.locked("export")
    def view(form: str) -> Any:
        def rows() -> Iterator[str]:
            yield from "abc"

        return {"iterator": rows(), "tuple": (rows(), 201), "response": flask.Response(rows())}[form]

    for form in ("iterator", "tuple", "response"):
        answer = site.get(f"/export/{form}")
        chunks = answer.iter_encoded()
        next(iter(chunks))
        assert place.witness.holders() == 1
        assert site.get(f"/export/{form}").status_code == 409
        answer.close()
        assert place.witness.holders() == 0


def test_a_generator_is_a_view_that_is_locked_to_its_end(place: Place, site: Site) -> None:
    """A plain decorator would have released before its first line ran."""
    seen = []

    @site.app.get("/export")
    @site.dlock.locked("export")
    def view() -> Iterator[str]:
        seen.append(place.witness.holders())
        yield "done"

    assert site.get("/export").text == "done"
    assert seen == [1]


def test_a_streamed_answer_of_an_async_view_is_part_of_it(place: Place, site: Site) -> None:
    """Its event loop has ended by then."""

    @site.app.get("/export")
    @site.dlock.locked("export")
    async def view() -> Any:
        return (chunk for chunk in "abc")

    answer = site.get("/export")
    assert place.witness.holders() == 1
    assert answer.text == "abc"
    assert place.witness.holders() == 0


def test_options_of_the_decorator_reach_the_lock(place: Place, site: Site) -> None:
    """Status and header here; waiting, sharing and binds go the same way."""

    @site.app.get("/export")
    @site.dlock.locked("export", status=423, retry_after=9, timeout=0.1)
    def view() -> str:
        return ""

    with place.held("export"):
        answer = site.get("/export")
    assert (answer.status_code, answer.headers["Retry-After"]) == (423, "9")


def test_a_locked_function_can_be_called_outside_of_a_request(place: Place, site: Site) -> None:
    """In an application context, by a job for instance."""

    @site.dlock.locked("doc:{doc_id}")
    def work(doc_id: int) -> int:
        return place.witness.holders()

    with site.app.app_context():
        assert work(7) == 1
        assert work(doc_id=7) == 1
