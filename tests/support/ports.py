"""A port for a server that binds it itself, seconds later, in a process of its own."""

from __future__ import annotations

import secrets
import socket

# Below every system's ephemeral ports and above SERVER_PORTS: until the server binds its port no
# outgoing connection takes it, and no test server does.
_PORTS = range(22_000, 32_000)


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on; random, as other tests ask at the same time."""
    while True:
        with socket.socket() as probe:
            port = secrets.choice(_PORTS)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
