"""Under which names the status page answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightrag_resilience.config.allowed_hosts import hosts_in, is_allowed_host, is_host_pattern


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "10.1.2.3", "[::1]", "::1", "[fe80::1]"),
        *("localhost", "lightrag", "LIGHTRAG", "testserver", "my_service"),
        *(
            "rag.localhost",
            "printer.local",
            "rag.svc.cluster.local",
            "rag.internal",
            "rag.internal.",
        ),
    ],
)
def test_addresses_and_private_names_are_allowed(host: str) -> None:
    assert is_allowed_host(host.lower())


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example.com", "localhost.evil.com", "127.0.0.1.evil.com", "local.com", "a.locals"),
        *("", ".", "a b", "a/b", "evil.com:80:80", "[::1", "1.2.3.4.5", "x" * 300, "é.local"),
        *("localhost\n", "a..local", "-.evil.com", "user@localhost.com"),
    ],
)
def test_other_sites_names_are_not(host: str) -> None:
    assert not is_allowed_host(host)


@pytest.mark.parametrize(
    ("host", "allowed", "is_allowed"),
    [
        ("rag.example.com", ["rag.example.com"], True),
        ("rag.example.com.", ["rag.example.com"], True),
        ("rag.example.com", ["RAG.example.com"], True),
        ("rag.example.com", ["*.example.com"], True),
        ("a.rag.example.com", ["*.example.com"], True),
        ("example.com", ["*.example.com"], False),
        ("evilexample.com", ["*.example.com"], False),
        ("rag.example.com.evil.com", ["rag.example.com", "*.example.com"], False),
        ("evil.com", ["*"], True),
    ],
)
def test_what_the_variable_names_is_allowed(
    host: str,
    allowed: list[str],
    is_allowed: bool,  # noqa: FBT001
) -> None:
    assert is_allowed_host(host, allowed) is is_allowed


@pytest.mark.parametrize("text", ["*", "*.example.com", "rag.example.com", "localhost"])
def test_names_can_be_set(text: str) -> None:
    assert is_host_pattern(text)


@pytest.mark.parametrize("text", ["", "*.", "*a.com", "a b", "http://x.com", "x.com:80", "a.*"])
def test_what_is_no_name_cannot(text: str) -> None:
    assert not is_host_pattern(text)


def test_ports_are_left_out_and_all_hosts_are_found() -> None:
    headers = [(b"Host", b"RAG.example.com:8443"), (b"accept", b"*/*"), (b"host", b"[::1]:80")]
    assert hosts_in(headers) == ["rag.example.com", "[::1]"]


@given(st.binary(max_size=64))
def test_no_header_raises(value: bytes) -> None:
    for host in hosts_in([(b"host", value)]):
        is_allowed_host(host, ["*.example.com"])
