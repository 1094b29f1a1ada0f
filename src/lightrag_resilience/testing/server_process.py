"""A server process that ends with the process which started it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["HOST", "SERVER_PORTS", "Child", "check_that_it_is_free"]

HOST = "127.0.0.1"

# Below every system's ephemeral ports, Redis's cluster bus (10 000 higher) too: while the server
# is down no outgoing connection takes its port, and no client connects to itself there.
SERVER_PORTS = range(10_000, 22_000)

# The kernel ends the server with us, even after SIGKILL. Set in a process of its own which then
# becomes the server, as a preexec_fn can deadlock where there are threads; and after the change of
# user, which would clear it, and which comes late, as the other user may not read this Python.
_WITH_ITS_PARENT = """\
import ctypes, os, sys
user, group = map(int, sys.argv.pop(2).split(":"))
if user >= 0:
    os.setgroups([])
    os.setgid(group)
    os.setuid(user)
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL
if os.getppid() != int(sys.argv[1]):
    os._exit(1)  # the parent was quicker
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class Child:
    """What is known of a process from before it begins, as an interrupt can come at any time."""

    spawned: Future[subprocess.Popen[bytes]] = field(default_factory=Future)
    ended: threading.Event = field(default_factory=threading.Event)

    def start(  # noqa: PLR0913 - a process has that many surroundings
        self,
        command: Sequence[str],
        *,
        output: Path,
        name: str,
        user: str | None = None,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Begin to run a command; `spawned` tells whether that went well.

        Args:
            command: The words, the first a path.
            output: The file that takes what it says.
            name: The name of the thread that stays with it.
            user: Whom it runs as, with that user's own group; only root may choose.
            folder: Where it runs.
            environment: Its variables instead of ours.
        """

        def run() -> None:
            self._run(list(command), output, user, folder, environment)

        # PDEATHSIG means the death of the starting thread, so one thread stays until the end.
        threading.Thread(target=run, name=name, daemon=True).start()

    def _run(
        self,
        command: list[str],
        output: Path,
        user: str | None,
        folder: Path | None,
        environment: Mapping[str, str] | None,
    ) -> None:
        if sys.platform == "linux":
            own_pid = str(os.getpid())
            ids = ":".join(map(str, ids_of(user) if user else (-1, -1)))
            command = [sys.executable, "-I", "-S", "-c", _WITH_ITS_PARENT, own_pid, ids, *command]
            user = None
        try:
            with output.open("wb") as file:
                spawned = subprocess.Popen(  # noqa: S603 - the caller's own words, and no shell
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # a Ctrl-C is its owner's to handle
                    cwd=folder,
                    env=environment,
                    user=user,
                    group=ids_of(user)[1] if user else None,
                    extra_groups=[] if user else None,
                )
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            self.spawned.set_exception(error)
        else:
            self.spawned.set_result(spawned)
            spawned.wait()
        finally:
            self.ended.set()


def ids_of(user: str) -> tuple[int, int]:
    """The numbers of a user and of that user's own group."""
    import pwd  # noqa: PLC0415 - Windows has none

    entry = pwd.getpwnam(user)
    return entry.pw_uid, entry.pw_gid


def check_that_it_is_free(port: int, server: str) -> None:
    """Another server there may answer in our server's place, and not say who it is.

    Raises:
        RuntimeError: The port is taken, or not ours to take.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise RuntimeError(
                f"The {server} server cannot have port {port}: {error.strerror}"
            ) from error
