"""The processes of a test server: to whom they belong, and what an interrupt leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightrag_resilience.testing.redis_server import RedisServer
from support.processes import PATIENCE, alive, answers, children, until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
    pytest.mark.usefixtures("nothing_left"),
]


@contextlib.contextmanager
def script(*lines: str) -> Iterator[subprocess.Popen[str]]:
    """Another Python process, which begins with a server of its own and says its pid."""
    begin = [
        "import os, signal, sys, time",
        "from lightrag_resilience.testing.redis_server import RedisServer",
        "server = RedisServer()",
        "server.start()",
        "print(server.pid, flush=True)",
    ]
    process = subprocess.Popen(  # noqa: S603 - our own words
        [sys.executable, "-c", "\n".join([*begin, *lines])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE)


def first_number(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """How it ended, and what it said until then."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


# ---------------------------------------------------------------------- whose it is


def test_it_outlives_the_thread_that_started_it() -> None:
    server = RedisServer()
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    with server_stopped(server):
        time.sleep(0.2)  # what would end it comes with the end of the thread
        assert answers(server)


@contextlib.contextmanager
def server_stopped(server: RedisServer) -> Iterator[None]:
    try:
        yield
    finally:
        server.stop()


def test_it_dies_with_its_parent_however_that_ends(files: Path) -> None:
    with script("time.sleep(60)") as owner:
        pid = first_number(owner)
        assert alive(pid)
        owner.kill()
        owner.wait()
        until(lambda: not alive(pid), seconds=2)
    for left in files.glob("*/*"):  # the one case which leaves files
        left.unlink()
    for left in files.iterdir():
        left.rmdir()


@pytest.mark.parametrize(
    ("end", "status"), [("pass", 0), ("sys.exit(3)", 3), ("raise KeyError", 1)]
)
def test_it_is_stopped_when_its_owner_ends(end: str, status: int, files: Path) -> None:
    with script(end) as owner:
        pid = first_number(owner)
        code, out, err = ended(owner)
    assert (code, out) == (status, "")
    assert err.startswith("Traceback") if status == 1 else not err
    assert not alive(pid)
    assert list(files.iterdir()) == []


def test_a_forked_child_leaves_it_alone() -> None:
    child = [
        "if os.fork() == 0:",
        "    assert not server.running",
        "    try: server.start()",
        "    except RuntimeError: pass",
        "    else: os._exit(7)",
        "    server.stop()",
        "    server.kill()",
        "    sys.exit(5)",  # with its hooks
    ]
    parent = [
        "status = os.waitstatus_to_exitcode(os.wait()[1])",
        "print(status, server.pid, len(os.listdir(os.environ['TMPDIR'])))",
    ]
    with script(*child, *parent) as owner:
        pid = first_number(owner)
        code, out, _ = ended(owner)
    assert (code, out) == (0, f"5 {pid} 1\n")


def test_a_ctrl_c_is_its_owners_to_handle() -> None:
    lines = [
        "signal.signal(signal.SIGINT, signal.default_int_handler)",  # some shells ignore it
        "try:",
        "    print(0, flush=True)",
        "    time.sleep(60)",
        "except KeyboardInterrupt:",
        "    time.sleep(0.2)",
        "    print(server.running)",
    ]
    with script(*lines) as owner:
        pid = first_number(owner)
        first_number(owner)
        os.killpg(owner.pid, signal.SIGINT)
        assert ended(owner) == (0, "True\n", "")
    assert not alive(pid)


@contextlib.contextmanager
def interrupted(seconds: float) -> Iterator[None]:
    """A Ctrl-C after so long, if not before the end."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


@pytest.mark.parametrize("milliseconds", [0.3, 0.6, 1, 1.5, 2, 3, 6, 12, 24, 36])
def test_an_interrupted_start_leaves_nothing(milliseconds: float, files: Path) -> None:
    before = children()
    server = RedisServer()
    with pytest.raises(KeyboardInterrupt), interrupted(milliseconds / 1000), server:
        time.sleep(PATIENCE)
    assert children() == before
    assert list(files.iterdir()) == []
    with server:
        assert answers(server)


def test_an_interrupt_before_its_process_is_known_leaves_nothing(
    server: RedisServer, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = subprocess.Popen

    def slow(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        time.sleep(0.5)
        return real(*args, **options)

    monkeypatch.setattr(subprocess, "Popen", slow)
    before = children() - {server.pid}
    with pytest.raises(KeyboardInterrupt), interrupted(0.2):
        server.restart()
    time.sleep(0.5)  # what comes late would be here by then
    assert not server.running
    assert children() == before
    assert list(files.iterdir()) == []
