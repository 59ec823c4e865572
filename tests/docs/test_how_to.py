"""What the how-to pages show, for real: shell lines in a shell, applications on their servers, several at once."""

from __future__ import annotations

import os
import re
import shlex
import socket
from pathlib import Path

import httpx
import pytest

from tests.servers import wait_until

from .desk import Desk, Program
from .pages import DOCS, PAGES, blocks, commands, files, write_files

TESTED = {"cron.md", "migration.md", "alembic.md", "celery-beat.md", "fastapi.md", "apscheduler.md", "tutorial.md"}


def test_each_page_with_files_is_tested() -> None:
    """Examples that are complete in themselves run anyway; a file needs a test of its own."""
    assert {page.name for page in PAGES if any(block.file for block in blocks(page))} <= TESTED


def _script(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def _hold(desk: Desk, *options: str, seconds: int = 600) -> Program:
    """Let another program hold the lock."""
    holder = desk.start("dlock", "run", *options, "--", "sh", "-c", f"echo holding; exec sleep {seconds}")
    holder.wait_for("holding")
    return holder


def crontab() -> list[str]:
    """Return the command lines of the crontab on the page."""
    [block] = [block for block in blocks(DOCS / "how-to/cron.md") if "*/5 *" in block.text]
    return re.findall(r"^(?:\S+ ){5} *(dlock .*)$", block.text, flags=re.MULTILINE)


def test_the_lines_of_the_crontab_do_what_the_page_says(desk: Desk) -> None:
    """The first leaves it, the second waits, the third leaves it and succeeds."""
    for name in ("report.sh", "clean-up.sh", "statistics.sh"):
        _script(desk.folder, name, "echo $DLOCK_KEY; exit 3")
    leaves, waits, skips = crontab()
    for line in (leaves, waits, skips):
        program = desk.shell(line)
        assert (program.end(), program.said) == (3, f"{shlex.split(line)[2]}\n")
    holders = [_hold(desk, shlex.split(line)[2]) for line in (leaves, waits, skips)]
    left, skipped, waiting = desk.shell(leaves), desk.shell(skips), desk.shell(waits)
    assert (left.end(), skipped.end()) == (75, 0)
    assert left.said.startswith("nightly-report is held by ")
    assert waiting.process.poll() is None
    holders[1].kill()
    assert waiting.end(10) == 3


def test_the_program_of_the_page_and_the_command_name_the_same_lock(sqlite_desk: Desk) -> None:
    """Status 75 from both, whichever came first."""
    write_files("how-to/cron.md", sqlite_desk.folder)
    assert sqlite_desk.run("python", "nightly.py") == (0, "the report\n")
    holder = _hold(sqlite_desk, "nightly-report")
    assert sqlite_desk.run("python", "nightly.py") == (75, "")
    assert sqlite_desk.run("dlock", "run", "nightly-report", "--exit-code", "9", "--", "true")[0] == 9
    holder.kill()
    assert sqlite_desk.run("python", "nightly.py") == (0, "the report\n")


def test_the_program_ends_when_the_lock_is_lost(desk: Desk) -> None:
    """Status 74, after SIGTERM."""
    holder = _hold(desk, "nightly-report", "--grace", "5")
    assert desk.run("dlock", "terminate", "nightly-report", "--yes")[0] == 0
    assert holder.end() == 74


def test_a_short_job_may_keep_the_lock_for_longer(desk: Desk) -> None:
    """As the trap of the page advises."""
    _script(desk.folder, "report.sh", "echo reported")
    [line] = re.findall(r"`(dlock run [^`]*sleep 30')`", (DOCS / "how-to/cron.md").read_text())
    job = desk.shell(line)
    job.wait_for("reported")
    assert desk.shell(line).end() == 75


def test_what_cannot_be_started_has_the_status_of_shells(desk: Desk) -> None:
    """126, 127, and 2 for the command line and the database."""
    (desk.folder / "no-program").touch()
    assert desk.run("dlock", "run", "k", "--", "./no-program")[0] == 126
    assert desk.run("dlock", "run", "k", "--", "./nothing")[0] == 127
    assert desk.run("dlock", "run", "k", "--", "true", DLOCK_URL="postgresql+psycopg://nobody@127.0.0.1:9/no")[0] == 2
    assert desk.run("dlock", "run")[0] == 2


def _scripts(page: str) -> list[str]:
    return [block.text for block in blocks(DOCS / page) if block.language == "sh"]


@pytest.mark.parametrize("number", [0, 1])
def test_one_of_several_containers_migrates_and_all_start(desk: Desk, number: int) -> None:
    """Both entrypoints of the page, with a tool that writes down what it does."""
    _script(
        desk.folder,
        "alembic",
        "echo in >> log; [ -e done ] || { echo migrates; sleep 1; touch done; }; echo out >> log; echo $*",
    )
    _script(desk.folder, "entrypoint.sh", _scripts("how-to/migration.md")[number])
    path = f"{desk.folder}{os.pathsep}{desk.environment['PATH']}"
    containers = [desk.start("./entrypoint.sh", "echo", "started", PATH=path) for _ in range(4)]
    assert [container.end() for container in containers] == [0] * 4
    assert sorted(container.said.count("migrates") for container in containers) == [0, 0, 0, 1]
    assert all(container.said.endswith("upgrade head\nstarted\n") for container in containers)
    assert (desk.folder / "log").read_text() == "in\nout\n" * 4


@pytest.mark.parametrize("number", [0, 1])
def test_a_container_whose_migration_fails_does_not_start(desk: Desk, number: int) -> None:
    """Nor one that is tired of waiting."""
    _script(desk.folder, "alembic", "exit 5")
    script = _scripts("how-to/migration.md")[number].replace("--timeout 600", "--timeout 1")
    _script(desk.folder, "entrypoint.sh", script)
    path = f"{desk.folder}{os.pathsep}{desk.environment['PATH']}"
    assert desk.run("./entrypoint.sh", "echo", "started", PATH=path) == (5, "")
    holder = _hold(desk, "migrate")
    late = desk.start("./entrypoint.sh", "echo", "started", PATH=path)
    if number == 0:
        assert late.end() == 75
    else:
        late.wait_for("migrate is held")
        holder.kill()
        assert late.end() == 5
    assert "started" not in late.said


def test_tables_are_made_by_one_process(sqlite_desk: Desk) -> None:
    """The example in code, by several at once."""
    [example] = [block.text for block in blocks(DOCS / "how-to/migration.md") if block.language == "python"]
    programs = [sqlite_desk.start("python", "-W", "error", "-c", example) for _ in range(4)]
    assert [(program.end(), program.said) for program in programs] == [(0, "")] * 4


def test_a_task_that_is_slower_than_two_beats_does_not_overlap(sqlite_desk: Desk) -> None:
    """A real worker with four slots, and two beats, with a broker of files in place of the page's."""
    write_files("how-to/celery-beat.md", sqlite_desk.folder)
    folders = {name: sqlite_desk.folder / name for name in ("queue", "control")}
    for folder in folders.values():
        folder.mkdir()
    options = {f"data_folder_{way}": str(folders["queue"]) for way in ("in", "out")}
    options["control_folder"] = str(folders["control"])
    site = f"from tasks import app\napp.conf.broker_transport_options = {options!r}\n"
    (sqlite_desk.folder / "site_of_test.py").write_text(site)
    worker_line, beat_line = [line for line in commands("how-to/celery-beat.md") if line.startswith("celery ")]
    worker = _celery(sqlite_desk, worker_line, "--loglevel", "INFO")
    beats = [_celery(sqlite_desk, beat_line, "--schedule", f"beat-{number}") for number in range(2)]
    wait_until(lambda: worker.said.count("ended") >= 3, "three runs", 60)
    assert [beat.process.poll() for beat in beats] == [None, None]
    runs = re.findall(r"\b(began|ended)\b", worker.said)
    assert runs == (["began", "ended"] * len(runs))[: len(runs)]
    assert "skipped: key 'tasks.report' is held" in worker.said
    [line] = re.findall(r"`(dlock show [^`]*)`", (DOCS / "how-to/celery-beat.md").read_text())
    wait_until(lambda: sqlite_desk.shell(line).end() == 0, "the command to find the lock")
    worker.process.terminate()
    worker.end()


def _celery(desk: Desk, line: str, *options: str) -> Program:
    words = ["python", "-m", *shlex.split(line.replace("-A tasks", "-A site_of_test")), *options]
    return desk.start(*words, CELERY_BROKER_URL="filesystem://")


class Served:
    """The FastAPI application of the page, by uvicorn."""

    def __init__(self, desk: Desk) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = str(probe.getsockname()[1])
        [line] = [line for line in commands("how-to/fastapi.md") if line.startswith("uvicorn ")]
        self.program = desk.start("python", "-m", *shlex.split(line), "--port", port)
        self.address = f"http://127.0.0.1:{port}"
        wait_until(self._is_up, "the server to answer")

    def _is_up(self) -> bool:
        try:
            return httpx.get(f"{self.address}/docs").status_code == 200
        except httpx.TransportError:
            return False

    def export(self, name: str, timeout: float = 30) -> httpx.Response:
        """Ask for an export."""
        return httpx.post(f"{self.address}/reports/{name}/export", timeout=timeout)


def _lengthened(desk: Desk, seconds: float) -> None:
    """Make the page's work take so long."""
    path = desk.folder / "main.py"
    path.write_text(path.read_text().replace("sleep(1)", f"sleep({seconds})"))


@pytest.fixture
def fastapi_desk(sqlite_desk: Desk) -> Desk:
    """A folder with the page's application."""
    write_files("how-to/fastapi.md", sqlite_desk.folder)
    return sqlite_desk


def test_the_second_request_gets_409_while_the_first_is_served(fastapi_desk: Desk) -> None:
    """On whatever worker; another report is not disturbed, and the client that goes away changes nothing."""
    _lengthened(fastapi_desk, 4)
    served = Served(fastapi_desk)
    with pytest.raises(httpx.TimeoutException):
        served.export("sales", 1)  # this client goes away
    answers = [served.export("sales") for _ in range(4)]
    assert {(answer.status_code, answer.headers["Retry-After"]) for answer in answers} == {(409, "1")}
    assert served.export("costs").json() == {"exported": "costs"}
    wait_until(lambda: served.export("sales").status_code == 200, "the first to end")


def test_a_lost_lock_answers_500(fastapi_desk: Desk) -> None:
    """Rather than as if nothing had happened."""
    _lengthened(fastapi_desk, 5)
    served = Served(fastapi_desk)
    with pytest.raises(httpx.TimeoutException):
        served.export("sales", 1)
    assert fastapi_desk.run("dlock", "terminate", "--prefix", "export", "sales", "--yes")[0] == 0
    served.program.wait_for("LockLostError")


@pytest.fixture
def scheduling(url: str, desk: Desk) -> Desk:
    """A folder with the page's scheduler, on either database."""
    text = files("how-to/apscheduler.md")["jobs.py"]
    (desk.folder / "jobs.py").write_text(text.replace('"sqlite:///shop.db"', repr(url)))
    return desk


WORKER = "import jobs, time; jobs.start(); time.sleep({})"


def test_one_worker_schedules_and_another_takes_over(scheduling: Desk) -> None:
    """When the first is killed, the second runs the jobs."""
    first = scheduling.start("python", "-c", WORKER.format(600))
    first.wait_for("reports")
    second = scheduling.start("python", "-c", WORKER.format(600))
    wait_until(lambda: first.said.count("reports") >= 4, "more runs")
    assert second.said == ""
    first.kill()
    second.wait_for("reports", 10)
    third = scheduling.start("python", "-W", "error", "-c", WORKER.format(1))
    assert (third.end(10), third.said) == (0, "")  # a waiting thread does not keep a worker from ending


def test_a_leader_that_lost_its_lock_stands_in_line_again(scheduling: Desk) -> None:
    """Terminated, it stops its scheduler; nothing crashes, and one of both schedules."""
    both = [scheduling.start("python", "-c", WORKER.format(600)) for _ in range(2)]
    wait_until(lambda: any("reports" in one.said for one in both), "a leader")
    [leader] = [one for one in both if "reports" in one.said]
    [other] = [one for one in both if one is not leader]
    assert scheduling.run("dlock", "terminate", "scheduler", "--yes")[0] == 0
    other.wait_for("reports", 10)
    before = leader.said.count("reports")
    wait_until(lambda: other.said.count("reports") >= 4, "more runs")
    assert leader.said.count("reports") <= before + 1
    other.kill()
    wait_until(lambda: leader.said.count("reports") > before + 1, "it to lead again")


def test_a_lock_for_each_run_lets_short_jobs_run_one_after_the_other(sqlite_desk: Desk) -> None:
    """The page's second way does what it says, and no more."""
    [_, example] = [block.text for block in blocks(DOCS / "how-to/apscheduler.md") if block.language == "python"]
    assert [sqlite_desk.run("python", "-c", example)[1] for _ in range(2)] == ["reports\n"] * 2
    holder = _hold(sqlite_desk, "report")
    assert sqlite_desk.run("python", "-c", example) == (0, "")
    assert holder.process.poll() is None
