"""`DLock` and its applications: initialisation, databases, configuration."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path
from typing import Any

import flask
import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy

from dlock_flask import DLock

from .places import Place, together


def ask(dlock: DLock, **options: Any) -> bool:
    """Tell whether a key can be had now."""
    with dlock.try_lock("export", **options) as handle:
        return handle.held


@pytest.mark.parametrize("first", ["dlock", "db"])
def test_the_extensions_may_be_initialised_in_any_order(place: Place, first: str) -> None:
    """Engines are looked up when a lock first needs them."""
    app, db, dlock = flask.Flask("shop"), SQLAlchemy(), DLock()
    app.config["SQLALCHEMY_DATABASE_URI"] = place.url
    for extension in (dlock, db) if first == "dlock" else (db, dlock):
        extension.init_app(app)
    with app.app_context():
        with place.held("export"):
            assert not ask(dlock)
        assert ask(dlock)
        dlock.close()
        db.engine.dispose()


def test_initialising_touches_no_database() -> None:
    """The server may still be starting."""
    app = flask.Flask("shop")
    app.config["DLOCK_URL"] = "postgresql+psycopg://nobody@127.0.0.1:1/nothing"
    DLock(app)
    assert app.config["DLOCK_TIMEOUT"] == 0


def test_applications_of_one_process_have_databases_of_their_own(place: Place, tmp_path: Path) -> None:
    """One DLock, two applications: the same key is two locks."""
    dlock = DLock()
    here = place.site(dlock)
    there = place.site(dlock, SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path / 'other.db'}")
    with place.held("export"):
        with here.app.app_context():
            assert not ask(dlock)
        with there.app.app_context():
            assert ask(dlock)


def test_applications_of_one_process_on_one_database_exclude_each_other(place: Place) -> None:
    """As they would in two processes."""
    one, other = place.site(), place.site()
    with one.app.app_context(), one.dlock.lock("export"), other.app.app_context():
        assert not ask(other.dlock)


def test_an_application_takes_one_dlock(sqlite: Place) -> None:
    """A second would have locks of its own; two objects for one purpose are a mistake."""
    site = sqlite.site()
    with pytest.raises(RuntimeError, match="'shop' has a DLock already"):
        DLock(site.app)


def test_outside_of_an_application_flask_says_so() -> None:
    """With the usual words."""
    with pytest.raises(RuntimeError, match="Working outside of application context"):
        DLock().lock("export")


def test_an_application_without_dlock_learns_what_to_do() -> None:
    """By name."""
    with flask.Flask("shop").app_context(), pytest.raises(RuntimeError, match=r"'shop' has no DLock: call dlock\.init"):
        DLock().lock("export")


def test_an_application_without_any_database_learns_what_to_do() -> None:
    """All three ways."""
    app = flask.Flask("shop")
    dlock = DLock(app)
    with app.app_context(), pytest.raises(RuntimeError, match=r"Flask-SQLAlchemy.*an engine.*DLOCK_URL"):
        dlock.lock("export")


def test_a_bind_names_another_database(place: Place, tmp_path: Path) -> None:
    """The default's lock and the bind's are two."""
    reports = f"sqlite:///{tmp_path / 'reports.db'}"
    site = place.site(SQLALCHEMY_BINDS={"reports": reports})
    with site.app.app_context():
        with place.held("export"):
            assert not ask(site.dlock)
            assert ask(site.dlock, bind="reports")
        with place.stranger(url=reports).lock("export"):
            assert ask(site.dlock)
            assert not ask(site.dlock, bind="reports")


def test_an_unknown_bind_is_an_error_that_lists_the_binds(sqlite: Place) -> None:
    """At the call."""
    site = sqlite.site(SQLALCHEMY_BINDS={"reports": "sqlite://", "audit": "sqlite://"})
    with site.app.app_context(), pytest.raises(LookupError, match=r"bind='report': .*'reports', 'audit'"):
        site.dlock.lock("export", bind="report")


def test_without_a_default_database_the_configured_bind_is_used(place: Place) -> None:
    """And without it, an error says so."""
    site = place.site(SQLALCHEMY_DATABASE_URI=None, SQLALCHEMY_BINDS={"locks": place.url}, DLOCK_BIND_KEY="locks")
    with site.app.app_context(), place.held("export"):
        assert not ask(site.dlock)
    other = place.site(SQLALCHEMY_DATABASE_URI=None, SQLALCHEMY_BINDS={"locks": place.url})
    with other.app.app_context(), pytest.raises(LookupError, match=r"set it, or DLOCK_BIND_KEY .*'locks'"):
        other.dlock.lock("export")


def test_an_engine_serves_without_flask_sqlalchemy(place: Place) -> None:
    """It stays its owner's: closing the locks does not dispose of it."""
    engine = sa.create_engine(place.url)
    app = flask.Flask("shop")
    dlock = DLock(app, engine=engine)
    with app.app_context():
        with place.held("export"):
            assert not ask(dlock)
        assert ask(dlock)
        dlock.close()
        assert ask(dlock)
        dlock.close()
    engine.dispose()


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[sa.Engine]:
    """The engines that are made from now on, each of them slowly."""
    made: list[sa.Engine] = []
    create = sa.create_engine

    def create_slowly(*args: Any, **options: Any) -> sa.Engine:
        time.sleep(0.05)  # so that others that ask at the same time find none yet
        made.append(create(*args, **options))
        return made[-1]

    monkeypatch.setattr(sa, "create_engine", create_slowly)
    return made


def test_a_url_serves_without_flask_sqlalchemy(place: Place, engines: list[sa.Engine]) -> None:
    """With options for the engine that is made from it."""
    app = flask.Flask("shop")
    app.config.update(DLOCK_URL=place.url, DLOCK_ENGINE_OPTIONS={"pool_recycle": 7})
    dlock = DLock(app)
    with app.app_context():
        with place.held("export"):
            assert not ask(dlock)
        dlock.close()
    assert engines[-1].pool._recycle == 7


def test_threads_that_ask_at_once_have_one_provider_and_one_engine(sqlite: Place, engines: list[sa.Engine]) -> None:
    """What a slower one made would stay open, with its own locks."""
    app = flask.Flask("shop")
    app.config["DLOCK_URL"] = sqlite.url
    dlock = DLock(app)

    def ask_anew(_number: int) -> int:
        with app.app_context():
            return id(app.extensions["dlock"].provider(None))

    assert len(set(together(8, ask_anew))) == 1
    assert len(engines) == 1
    with app.app_context():
        dlock.close()


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("DLOCK_ALLOW_UNSAFEAY", "there is no setting DLOCK_ALLOW_UNSAFEAY: did you mean DLOCK_ALLOW_UNSAFE?"),
        ("DLOCK_TIMEOT", r"did you mean DLOCK_TIMEOUT\?"),
        ("DLOCK_QQQQQQQQQQQQQQQQ", "there are DLOCK_URL, "),
    ],
)
def test_a_misspelt_setting_is_named(name: str, complaint: str) -> None:
    """It would be ignored."""
    app = flask.Flask("shop")
    app.config.update({"DLOCK_URL": "sqlite://", name: True})
    with pytest.raises(ValueError, match=complaint):
        DLock(app)


def test_a_switch_is_true_or_false() -> None:
    """The text "false" would switch it on."""
    app = flask.Flask("shop")
    app.config.update(DLOCK_URL="sqlite://", DLOCK_ALLOW_UNSAFE="false")
    with pytest.raises(ValueError, match="DLOCK_ALLOW_UNSAFE='false': give True or False"):
        DLock(app)


def test_the_url_goes_before_the_applications_own_database(place: Place, tmp_path: Path) -> None:
    """Locks may live elsewhere; a bind still means Flask-SQLAlchemy's."""
    own = f"sqlite:///{tmp_path / 'own.db'}"
    site = place.site(DLOCK_URL=place.url, SQLALCHEMY_DATABASE_URI=own, SQLALCHEMY_BINDS={"own": own})
    with site.app.app_context(), place.held("export"):
        assert not ask(site.dlock)
        assert ask(site.dlock, bind="own")


def test_a_creator_and_its_events_serve_the_lock_session_too(tmp_path: Path) -> None:
    """Where a token is fetched for each connection, the locks need it as well."""
    place = Place("postgresql", tmp_path)
    created, listened = [], []

    def creator() -> Any:
        import psycopg

        created.append(1)
        url = sa.make_url(place.url)
        return psycopg.connect(host=url.host, port=url.port, user=url.username, dbname=url.database)

    site = place.site(
        SQLALCHEMY_DATABASE_URI="postgresql+psycopg://nobody@127.0.0.1:1/x",
        SQLALCHEMY_ENGINE_OPTIONS={"creator": creator},
    )
    with site.app.app_context():
        sa.event.listen(site.db.engine, "connect", lambda *_: listened.append(1))
        assert ask(site.dlock)
    assert created == listened
    assert created
    place.close()


def test_a_listener_that_signs_in_serves_the_lock_session_too(tmp_path: Path) -> None:
    """`do_connect` is how tokens are given to drivers."""
    place = Place("postgresql", tmp_path)
    right = sa.make_url(place.url)
    site = place.site(SQLALCHEMY_DATABASE_URI="postgresql+psycopg://nobody@127.0.0.1:1/x")
    with site.app.app_context():

        def sign_in(_dialect: Any, _record: Any, _args: Any, parameters: dict[str, Any]) -> None:
            parameters.update(host=right.host, port=right.port, user=right.username, dbname=right.database)

        sa.event.listen(site.db.engine, "do_connect", sign_in)
        with place.held("export"):
            assert not ask(site.dlock)
        assert ask(site.dlock)
    place.close()


def test_a_database_in_memory_shows_conflicts_between_threads() -> None:
    """Flask-SQLAlchemy gives all threads one connection there; the lock must not be one session's."""
    app = flask.Flask("shop")
    app.config.update(SQLALCHEMY_DATABASE_URI="sqlite://", TESTING=True)
    db, dlock = SQLAlchemy(app), DLock(app)
    inside = []

    @app.get("/export")
    def view() -> str:
        with dlock.lock("export"):
            inside.append(1)
            together_inside.append(app.test_client().get("/export").status_code)
            return str(db.session.scalar(sa.text("SELECT 1")))

    together_inside: list[int] = []
    assert app.test_client().get("/export").status_code == 200
    assert together_inside == [409]

    def hold(number: int) -> bool:
        with app.app_context(), dlock.try_lock("other") as handle:
            counts.append(handle.held)
            while len(counts) < 2:
                pass
            return handle.held

    counts: list[bool] = []
    assert sorted(together(2, hold)) == [False, True]
    with app.app_context():
        dlock.close()
        db.engine.dispose()


def test_locks_of_a_database_in_memory_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """In production, where another worker process knows nothing of them; not in tests."""
    for testing, warnings in ((True, 0), (False, 1)):
        app = flask.Flask("shop")
        app.config.update(DLOCK_URL="sqlite://", TESTING=testing)
        dlock = DLock(app)
        with app.app_context():
            assert ask(dlock)
            dlock.close()
        assert caplog.text.count("known to this process only") == warnings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DLOCK_CONFLICT_STATUS", 404),
        ("DLOCK_CONFLICT_STATUS", "409"),
        ("DLOCK_RETRY_AFTER", 1.5),
        ("DLOCK_RETRY_AFTER", -1),
        ("DLOCK_MAX_WAITERS", -1),
        ("DLOCK_MAX_WAITERS", True),
        ("DLOCK_HEARTBEAT", 0.5),
        ("DLOCK_MAX_SESSIONS", 1),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_at_the_start(name: str, value: object) -> None:
    """Not in the first conflict, months later."""
    app = flask.Flask("shop")
    app.config[name] = value
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        DLock(app)


def test_the_configuration_goes_before_the_constructors_prefix(sqlite: Place) -> None:
    """The code's prefix is a default."""
    for config, prefix in (({}, "code"), ({"DLOCK_PREFIX": "config"}, "config")):
        site = sqlite.site(DLock(prefix="code"), **config)
        with site.app.app_context(), sqlite.held("export", prefix=prefix):
            assert not ask(site.dlock)


def test_the_shell_has_dlock(sqlite: Place) -> None:
    """`flask shell`, and there it is."""
    site = sqlite.site()
    with site.app.app_context():
        assert site.app.make_shell_context()["dlock"] is site.dlock


def test_a_forked_worker_has_locks_of_its_own(place: Place) -> None:
    """The parent holds; a child forked meanwhile is refused, and takes nothing away."""
    site = place.site()
    with site.app.app_context(), site.dlock.lock("export"):
        child = os.fork()
        if child == 0:
            os._exit(0 if ask(site.dlock) else 7)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7
        assert place.witness.holders() == 1


def test_a_sqlite_database_of_the_application_is_where_its_locks_are(sqlite: Place, tmp_path: Path) -> None:
    """Flask-SQLAlchemy puts a relative path into the instance folder, and so do the locks."""
    app = flask.Flask("shop", instance_path=str(tmp_path / "instance"))
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///shop.db"
    db, dlock = SQLAlchemy(app), DLock(app)
    with app.app_context(), dlock.lock("export"):
        assert (tmp_path / "instance" / "shop.db.dlock").is_dir()
        sqlite3.connect(tmp_path / "instance" / "shop.db").close()
    with app.app_context():
        dlock.close()
        db.engine.dispose()
