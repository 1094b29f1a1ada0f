"""What starts it all in containers: as far as it can be checked without any."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from lightrag_resilience.cli.app import app
from lightrag_resilience.cli.process_checks import examine_process
from lightrag_resilience.config.process_environment import read_process_environment
from lightrag_resilience.config.settings import load_settings
from support.paths import ROOT

DEPLOY = ROOT / "deploy"


def loaded(*path: str) -> Any:
    return yaml.safe_load(DEPLOY.joinpath(*path).read_text(encoding="utf-8"))


PASSWORD = "0123456789abcdef"  # noqa: S105 - of a server that lasts as long as a test
COMPOSE = yaml.safe_load(
    re.sub(r"\$\{REDIS_PASSWORD:\?[^}]*\}", PASSWORD, (DEPLOY / "compose.yml").read_text("utf-8"))
)
SERVICES = COMPOSE["services"]
SERVER = SERVICES["lightrag"]


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition("://")[2].rpartition("@")[2].partition("/")[0].partition(":")
    return host, int(port)


def test_every_folder_that_is_mounted_is_there() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).is_dir(), (name, volume)
            else:
                assert source in COMPOSE["volumes"], (name, volume)


def test_what_the_image_is_built_from_is_there() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    root = DEPLOY / SERVER["build"]["context"]
    assert (root / SERVER["build"]["dockerfile"]).samefile(DEPLOY / "Dockerfile")
    copied = [shlex.split(line)[1:-1] for line in text.splitlines() if line.startswith("COPY")]
    assert copied
    for source in [path for paths in copied for path in paths]:
        assert (root / source).exists(), source
    (extras,) = re.findall(r"'\.\[(.*)\]'", text)
    assert set(extras.split(",")) == {"server", "prometheus"}


def test_the_image_runs_a_command_that_exists() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)
    program, command = yaml.safe_load(entry)
    assert program == "lightrag-resilience"
    assert re.search(rf"^  {command} ", CliRunner().invoke(app, ["--help"]).output, re.MULTILINE)


def test_its_variables_are_right_and_do_not_fight() -> None:
    environment = SERVER["environment"]
    assert examine_process(load_settings(environment), read_process_environment(environment)) == []
    grace = float(SERVER["stop_grace_period"].removesuffix("s"))
    around = read_process_environment(environment)
    assert grace > around.graceful_timeout > load_settings(environment).shutdown_timeout


def test_each_service_is_looked_for_where_it_listens() -> None:
    scrape = loaded("prometheus", "prometheus.yml")
    (job,) = scrape["scrape_configs"]
    (alertmanager,) = scrape["alerting"]["alertmanagers"]
    (source,) = loaded("grafana", "provisioning", "datasources", "prometheus.yml")["datasources"]
    listens = {"lightrag": int(SERVER["environment"]["PORT"]), "redis": 6379}
    for name in ("prometheus", "alertmanager"):
        listens[name] = int(SERVICES[name]["ports"][0].rpartition(":")[2])
    for url in (
        job["static_configs"][0]["targets"][0],
        alertmanager["static_configs"][0]["targets"][0],
        source["url"],
        SERVER["environment"]["RESILIENCE_REDIS_URL"],
    ):
        host, port = address(url)
        assert listens[host] == port, url
    assert f"EXPOSE {listens['lightrag']}" in (DEPLOY / "Dockerfile").read_text(encoding="utf-8")


def test_no_container_has_more_rights_than_it_needs() -> None:
    for name, service in SERVICES.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        for port in service.get("ports", ()):
            assert name == "lightrag" or port.startswith("127.0.0.1:"), (name, port)


def test_nothing_but_the_server_reaches_redis() -> None:
    assert COMPOSE["networks"]["shared"] == {"internal": True}
    shared = {name for name, each in SERVICES.items() if "shared" in each["networks"]}
    assert shared == {"lightrag", "redis"}
    assert SERVICES["redis"]["networks"] == ["shared"]
    assert "ports" not in SERVICES["redis"]


def test_the_rules_find_the_job_and_grafana_its_dashboards() -> None:
    (job,) = loaded("prometheus", "prometheus.yml")["scrape_configs"]
    asked = re.findall(r'up\{job="(\w+)"', (DEPLOY / "prometheus" / "rules.yml").read_text())
    assert set(asked) == {job["job_name"]}
    (provider,) = loaded("grafana", "provisioning", "dashboards", "lightrag.yml")["providers"]
    mounts = dict(
        volume.split(":")[1::-1] for volume in SERVICES["grafana"]["volumes"] if "." in volume[0]
    )
    dashboards = DEPLOY / mounts[provider["options"]["path"]]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (dashboards / Path(home).name).is_file()
    assert (DEPLOY / mounts["/usr/share/grafana/public/lightrag"] / "runbooks.md").is_file()


def test_alertmanager_routes_know_the_alerts_and_their_severities() -> None:
    groups = loaded("prometheus", "rules.yml")["groups"]
    alerts = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    manager = loaded("alertmanager", "alertmanager.yml")
    receivers = {receiver["name"] for receiver in manager["receivers"]}
    routed = [route["matchers"][0] for route in manager["route"]["routes"]]
    assert {route["receiver"] for route in manager["route"]["routes"]} <= receivers
    assert {f'severity="{alert["labels"]["severity"]}"' for alert in alerts} == set(routed)
    named = re.findall(r"Lightrag\w+", yaml.safe_dump(manager["inhibit_rules"]))
    assert set(named) <= {alert["alert"] for alert in alerts}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="apt-get install prometheus")
def test_promtool_finds_the_configuration_right() -> None:
    command = ["promtool", "check", "config", str(DEPLOY / "prometheus" / "prometheus.yml")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    assert ran.returncode == 0, ran.stdout + ran.stderr
