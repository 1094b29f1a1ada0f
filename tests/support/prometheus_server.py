"""A real Prometheus on a free port, with our rules, that scrapes a service once a second."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml

from .ports import free_port
from .recorded import RULES

WITHIN = 120.0  # seconds, on a busy machine


class Asked:
    """Prometheus' HTTP API."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def get(self, path: str, **parameters: Any) -> Any:
        answer = self._http.get(f"/api/v1/{path}", params=parameters)
        content = answer.json()
        assert content["status"] == "success", (path, parameters, content)
        return content["data"]

    def value(self, query: str) -> float | None:
        """Of the first series; None where there is none, or no number."""
        result = self.query(query)
        number = float(result[0]["value"][1]) if result else float("nan")
        return None if number != number else number  # noqa: PLR0124 - what is not itself is NaN

    def query(self, query: str) -> list[Any]:
        data = self.get("query", query=query)
        result: list[Any] = data["result"]
        return result

    def alerts(self, state: str) -> set[str]:
        """The names of those that are ``firing``, or ``pending``."""
        found = self.get("alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in found if alert["state"] == state}


def until(is_so: Callable[[], Any], what: str, seen: Callable[[], object] = str) -> None:
    deadline = time.monotonic() + WITHIN
    while not is_so():
        assert time.monotonic() < deadline, f"not within {WITHIN:g} s: {what}; {seen()}"
        time.sleep(0.1)


@contextlib.contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Asked]:
    folder.mkdir()
    (folder / "prometheus.yml").write_text(
        yaml.safe_dump(
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "250ms"},
                "rule_files": [str(RULES)],
                "scrape_configs": [
                    {"job_name": "lightrag", "static_configs": [{"targets": [target]}]}
                ],
            }
        )
    )
    binary = shutil.which("prometheus")
    assert binary is not None
    address = f"127.0.0.1:{free_port()}"
    options = {
        "--config.file": folder / "prometheus.yml",
        "--storage.tsdb.path": folder / "data",
        "--web.listen-address": address,
    }
    log = folder / "output.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - a fixed command
            [binary, *(f"{name}={value}" for name, value in options.items())],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=WITHIN) as http:

            def is_ready() -> bool:
                assert process.poll() is None, log.read_text()[-3000:]
                with contextlib.suppress(httpx.TransportError):
                    return http.get("/-/ready").status_code == 200
                return False

            until(is_ready, "Prometheus is ready")
            yield Asked(http)
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
