"""The admin's page "Locks" in a real browser, on a running server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.expected_conditions import staleness_of
from selenium.webdriver.support.wait import WebDriverWait

from tests.browsers import chromium
from tests.servers import wait_until
from tests.servers.sandbox import free_port

from .administered import ADMIN
from .databases import Row
from .site import Site

pytestmark = pytest.mark.slow  # a browser
ROWS = (Row("sqlite", "sqlite"), Row("postgresql-psycopg", "postgresql"))
USERS = """
from django.contrib.auth.models import User

User.objects.create_superuser("ops", password="ops")
"""


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chrome]:
    """A fresh browser."""
    with chromium(tmp_path) as browser:
        browser.set_window_size(1100, 600)
        yield browser


@pytest.fixture
def address(site: Site) -> str:
    """Where the site with its admin answers."""
    administered = site.with_settings(**ADMIN)
    for words in (("migrate", "--verbosity", "0"), ("shell", "-c", USERS)):
        done = administered.run(*words)
        assert done.process.returncode == 0, done.err
    port = free_port()
    administered.start("runserver", "--noreload", "--insecure", f"127.0.0.1:{port}")
    wait_until(lambda: answers(f"http://127.0.0.1:{port}/admin/login/"), "the server to answer", 30)
    return f"http://127.0.0.1:{port}"


def answers(address: str) -> bool:
    """Tell whether the server is up."""
    try:
        return httpx.get(address).status_code == 200
    except httpx.TransportError:
        return False


def log_in(browser: Chrome, address: str) -> None:
    """Come by the login and the index, as people do."""
    browser.get(f"{address}/admin/")
    for name in ("username", "password"):
        browser.find_element(By.NAME, name).send_keys("ops")
    click(browser, "[type=submit]")
    click(browser, ".model-lock a")


def click(browser: Chrome, css: str) -> None:
    """Click what there is once, and wait for the page to which it leads."""
    found = browser.find_element(By.CSS_SELECTOR, css)
    found.click()
    WebDriverWait(browser, 20).until(staleness_of(found))


def rows(browser: Chrome, kind: str) -> list[str]:
    """Return what the lines of holders or waiters say, from a page that is new."""
    browser.refresh()
    return [found.text for found in browser.find_elements(By.CSS_SELECTOR, f"tr.{kind}")]


def test_a_holder_is_seen_and_ended_by_clicks(row: Row, site: Site, address: str, browser: Chrome) -> None:
    """Two commands hold, one waits; `DLOCK_SCREENSHOTS=docs/images` renews the picture."""
    holder = site.start("work", "--do", "stay", "--lock", "--lock-key", "invoice:7").wait_in()
    other = site.start("work", "--do", "stay", "--lock", "--lock-key", "import & export").wait_in()
    waiter = site.start("work", "--do", "stay", "--lock", "--lock-key", "invoice:7", "--lock-timeout", "60")
    log_in(browser, address)
    wait_until(lambda: len(rows(browser, "waiter")) == 1, "the waiter to be shown", 20)
    assert str(waiter.process.pid) in rows(browser, "waiter")[0]
    shown = rows(browser, "holder")
    assert len(shown) == 2
    assert [line for line in shown if str(holder.process.pid) in line and line.startswith("invoice:7")]

    def named() -> bool:
        held = [line for line in rows(browser, "holder") if str(other.process.pid) in line]
        return ["import & export" in line for line in held] == [True]

    wait_until(named, "the key to be named, on PostgreSQL by the watch", 20)
    if (folder := os.environ.get("DLOCK_SCREENSHOTS")) and row.kind == "sqlite":
        browser.save_screenshot(str(Path(folder) / "django-admin.png"))

    click(browser, "[aria-label='Terminate invoice:7']")
    assert str(holder.process.pid) in browser.find_element(By.ID, "content").text
    click(browser, "#content [type=submit]")
    assert "Terminated django on" in browser.find_element(By.CSS_SELECTOR, ".messagelist").text
    waiter.wait_in()
    assert (holder.finish(), waiter.finish(), other.finish()) == (74, 0, 0)
    wait_until(lambda: not rows(browser, "holder"), "the locks to be free", 20)
    assert browser.find_element(By.ID, "content-main").text.count("No locks are held.") == 1
    logged: list[dict[str, str]] = browser.get_log("browser")  # type: ignore[no-untyped-call]
    assert [entry["message"] for entry in logged if "favicon" not in entry["message"]] == []
