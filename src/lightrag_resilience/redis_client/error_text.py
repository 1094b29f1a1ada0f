"""Describes errors of Redis in a clause that an operator can act on."""

from __future__ import annotations

import re

from .client import ANSWER_TIMEOUT

__all__ = ["describe_redis_error"]

_MAX_CLAUSE = 150  # characters
_MAX_ADDRESS = 100  # characters
_MAX_CAUSES = 10  # of one error, each the cause of the one before

_THIS_ADDRESS = "this address"
_NO_ANSWER = f"no answer within {ANSWER_TIMEOUT:g} s"
_TO_SOCKET = "connecting to (?:unix socket: )?/"  # redis-py before 5.1 adds the words in brackets
# The first pattern that is found wins: a specific text comes before the class that may contain it.
_CLAUSES = [
    (re.compile(pattern, re.IGNORECASE), clause)
    for pattern, clause in (
        ("Too many open files", "this process may open no more files"),
        ("can't (start|create) new thread", "this process may start no more threads"),
        ("certificate is not valid for", "its certificate is for another host"),
        ("certificate.has.expired", "its certificate has expired"),
        ("CERTIFICATE_VERIFY_FAILED", "its certificate is not trusted: see ssl_ca_certs"),
        ("CERTIFICATE_REQUIRED|bad certificate", "it wants a certificate: see ssl_certfile"),
        ("WRONG_VERSION|record.layer|SSLError", "TLS fails: does it speak TLS at this port?"),
        ("MasterNotFound.*AuthenticationError", "the Sentinels refuse sentinel_password"),
        ("MasterNotFound", "no Sentinel that answers knows a master of this name that is up"),
        ("without any password", "the address has a password, and Redis has none"),
        ("HELLO must be|Authentication required", "it asks for a password"),
        ("AuthenticationError", "the user or the password is refused"),
        (r"permissions? to run the '([\w|]+)'", "this user may not run {0}"),
        ("NoPermission.*channel", "this user may not use these channels"),
        ("NoPermission|NOPERM|ACL failure", "this user may not use these keys"),
        ("ReadOnlyError|READONLY|now a slave", "this is a replica that takes no writes"),
        ("OutOfMemory|OOM command", "its memory is full"),
        ("BusyLoading|LOADING", "it is still loading its data"),
        ("mode is not enabled|cluster support disabled", "this is no cluster"),
        ("unknown command .{0,3}SENTINEL", "this is no Sentinel: see redis://"),
        ("MovedError|AskError", "this is a node of a cluster: see redis+cluster://"),
        ("ClusterDown|SlotNotCovered|not covered", "the cluster is down, or a part of it"),
        ("MasterDown", "the replica has lost its master"),
        ("max number of clients", "it has as many clients as it takes"),
        ("DENIED|protected mode", "it is in protected mode, and takes only local clients"),
        ("MISCONF", "it takes no writes, as it cannot save to its disk"),
        ("NOREPLICAS", "it takes no writes, as it has too few replicas"),
        ("BUSY ", "it is busy with a script"),
        ("NOPROTO|unknown command .?HELLO", "it is older than Redis 6.2"),
        ("DB index|Invalid Database", "it has no database of this number"),
        ("gaierror|Name or service", "its host is not known"),
        (r"AF_UNIX path too long", "the path of its socket is too long"),
        (rf"{_TO_SOCKET}.*(No such file|Not a directory)", "there is no socket of this path"),
        (rf"{_TO_SOCKET}.*Permission denied", "this user may not use its socket"),
        (rf"{_TO_SOCKET}.*(refused|socket)", "nothing listens at this socket"),
        ("Refused|Connect call failed", f"nothing answers at {_THIS_ADDRESS}"),
        ("FileNotFound|PermissionError", "a file that an ssl_ option names cannot be read"),
        ("route to host|unreachable", "its host cannot be reached"),
        (
            "Timeout connecting",
            f"{_NO_ANSWER}: are host, port and TLS right?",
        ),
        ("TimeoutError", _NO_ANSWER),
        (
            "closed|ConnectionReset|BrokenPipe",
            "it closed the connection (does it want TLS, or a certificate?)",
        ),
        ("user_script|running script|compiling script|NoScript", "a script fails"),
    )
]


def describe_redis_error(error: BaseException, address: str = "") -> str:
    """An error of Redis as a clause of at most 150 characters, with no secret in it.

    The error's own text is not shown, except for the name of a command.

    Args:
        error: The error; its causes are read too.
        address: Host and port, see `redis_location`; adds at most 100 characters.
    """
    shown = address if len(address) <= _MAX_ADDRESS else f"{address[: _MAX_ADDRESS - 1]}…"
    clause = _clause(error)
    if not shown:
        return clause
    if _THIS_ADDRESS in clause:
        return clause.replace(_THIS_ADDRESS, shown)
    return f"{clause}, at {shown}"


def _clause(error: BaseException) -> str:
    cause: BaseException | None = error
    text = ""
    for _ in range(_MAX_CAUSES):
        if cause is not None:
            text += f"{type(cause).__name__}: {cause} "
            cause = cause.__cause__ or cause.__context__
    for pattern, clause in _CLAUSES:
        if found := pattern.search(text):
            return clause.format(*found.groups())[:_MAX_CLAUSE]
    return f"an error of kind {type(error).__name__}"[:_MAX_CLAUSE]
