"""The page with export buttons, in a real browser: Debian's Chromium, without a screen."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.browsers import chromium
from tests.servers.sandbox import free_port

from .places import Place, until

pytestmark = pytest.mark.slow  # a browser

EXAMPLE = Path(__file__).parents[2] / "example_projects" / "flask_exports" / "app.py"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chrome]:
    """A fresh browser."""
    with chromium(tmp_path) as browser:
        yield browser


@contextmanager
def running(place: Place, seconds: float) -> Iterator[str]:
    """Start the example with its one command, and return its address."""
    port = free_port()
    environment = {
        **os.environ,
        "PORT": str(port),
        "EXPORT_SECONDS": str(seconds),
        "EXPORTS_FOLDER": str(place.folder / "instance"),
    }
    if place.server is not None:
        environment["DATABASE_URL"] = place.url
    process = subprocess.Popen([sys.executable, str(EXAMPLE)], env=environment, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: answers(address), "the example to answer", 60)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def answers(address: str) -> bool:
    """Tell whether the example is up."""
    try:
        return httpx.get(address, verify=False).status_code == 200
    except httpx.TransportError:
        return False


class Window:
    """One window with the page; the browser shows one at a time."""

    def __init__(self, browser: Chrome, address: str) -> None:
        browser.switch_to.new_window("window")
        browser.set_window_size(900, 860)
        browser.get(address)
        self.browser = browser
        self.handle = browser.current_window_handle

    def section(self, report: str) -> WebElement:
        """Return the part of the page that shows a report."""
        self.browser.switch_to.window(self.handle)
        return self.browser.find_element(By.ID, report)

    def click(self, report: str) -> None:
        """Click its button."""
        self.section(report).find_element(By.TAG_NAME, "button").click()

    def state(self, report: str) -> str | None:
        """Return what the page takes the report for."""
        return self.section(report).get_attribute("data-state")

    def text(self, report: str) -> str:
        """Return what the user reads."""
        return self.section(report).find_element(By.CLASS_NAME, "status").text

    def percent(self, report: str) -> int:
        """Return how far the bar is, as a screen reader hears it."""
        bar = self.section(report).find_element(By.CLASS_NAME, "bar")
        return int(bar.get_attribute("aria-valuenow") or 0) if bar.is_displayed() else -1

    def close(self) -> None:
        """Close it, as a user does after seeing enough."""
        self.browser.switch_to.window(self.handle)
        self.browser.close()


def complaints(browser: Chrome) -> list[str]:
    """Return what the browser's console holds against the page; an answer 409 is logged there too."""
    logged: list[dict[str, str]] = browser.get_log("browser")  # type: ignore[no-untyped-call]
    return [entry["message"] for entry in logged if "409" not in entry["message"]]


def test_the_first_click_sees_progress_and_the_second_that_it_runs_already(place: Place, browser: Chrome) -> None:
    """In two windows; another report is not disturbed; the file is whole, and then it can be exported again."""
    with running(place, seconds=6) as address:
        one, other = Window(browser, address), Window(browser, address)
        one.click("orders")
        until(lambda: 0 < one.percent("orders") < 100, "progress")
        assert "of 1,800 rows" in one.text("orders")

        until(lambda: other.state("orders") == "elsewhere", "the other window to know")
        other.click("orders")
        until(lambda: other.state("orders") == "refused", "the answer to the second click")
        assert other.text("orders") == "Already running"
        other.click("customers")
        until(lambda: other.state("customers") == "done", "another report to be done", 30)

        until(lambda: one.state("orders") == "done", "the first to be done", 30)
        assert len(httpx.get(f"{address}/files/orders.csv").text.splitlines()) == 1801
        other.click("orders")
        until(lambda: other.percent("orders") > 0, "progress in the other window")
        assert complaints(browser) == []


def test_closing_the_window_frees_the_export_for_others(sqlite: Place, browser: Chrome) -> None:
    """And leaves no half file; so does a click on Cancel."""
    with running(sqlite, seconds=60) as address:
        one, other = Window(browser, address), Window(browser, address)
        one.click("orders")
        until(lambda: one.percent("orders") > 0, "progress")
        one.close()
        until(lambda: not httpx.get(f"{address}/reports/orders").json()["running"], "the lock to be free")
        other.click("orders")
        until(lambda: other.percent("orders") > 0, "progress in the other window")
        other.click("orders")
        until(lambda: other.text("orders") == "Cancelled.", "the cancel")
        until(lambda: not httpx.get(f"{address}/reports/orders").json()["running"], "the lock to be free")
        assert not list((sqlite.folder / "instance").glob("*.part"))


def test_the_page_looks_as_in_the_docs(sqlite: Place, browser: Chrome) -> None:
    """One report refused, one running, one done; `DLOCK_SCREENSHOTS=docs/images` renews the picture."""
    with running(sqlite, seconds=0.1) as address:
        httpx.post(f"{address}/reports/customers", timeout=60)
    with running(sqlite, seconds=10) as address:
        first, page = Window(browser, address), Window(browser, address)
        first.click("orders")
        until(lambda: first.percent("orders") > 0, "progress")
        page.click("orders")
        page.click("items")
        until(lambda: page.percent("items") >= 50, "progress", 30)
        states = [page.state(report) for report in ("orders", "items", "customers")]
        assert states == ["refused", "mine", "idle"]
        assert page.text("customers").startswith("Last: customers.csv")
        if folder := os.environ.get("DLOCK_SCREENSHOTS"):
            browser.save_screenshot(str(Path(folder) / "flask-exports.png"))
