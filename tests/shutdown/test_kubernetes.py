"""The manifests in ``deploy/kubernetes``: their times add up, and what they name is there."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("yaml")
pytest.importorskip("gunicorn")

import yaml

from lightrag_resilience.integrations.gunicorn import check_budget
from lightrag_resilience.settings import Settings, load_settings

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
OBJECTS: dict[tuple[str, str], Any] = {
    (each["kind"], each["metadata"]["name"]): each
    for path in sorted(FOLDER.glob("*.yml"))
    for each in yaml.safe_load_all(path.read_text())
}
POD = OBJECTS["Deployment", "lightrag"]["spec"]["template"]["spec"]
(SERVER,) = POD["containers"]
VARIABLES: dict[str, str] = OBJECTS["ConfigMap", "lightrag"]["data"]


def settings() -> Settings:
    ours = {name: text for name, text in VARIABLES.items() if name.startswith("RESILIENCE_")}
    return load_settings(ours)


def graceful_timeout() -> float:
    pytest.importorskip("lightrag")
    from lightrag_resilience.integrations.lightrag import _serving  # noqa: PLC0415 - see above

    config: Any = ModuleType("gunicorn_config")
    _serving.configure_gunicorn(config, settings())
    return float(config.graceful_timeout)


def pre_stop() -> float:
    command, seconds = SERVER["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    return float(seconds)


def test_each_may_last_shorter_than_the_next() -> None:
    drain = settings()
    grace = POD["terminationGracePeriodSeconds"]
    graceful = graceful_timeout()
    assert grace > pre_stop() + graceful
    assert graceful > drain.shutdown_timeout + 2
    assert drain.shutdown_timeout > drain.shutdown_cancel_grace + drain.shutdown_close_timeout
    assert "--gunicorn" in SERVER["args"]
    wrong = check_budget(
        graceful_timeout=graceful, grace_period=grace, pre_stop=pre_stop(), settings=drain
    )
    assert wrong == []


def test_probes_ask_what_the_server_answers() -> None:
    paths = {name: SERVER[f"{name}Probe"]["httpGet"]["path"] for name in ("readiness", "liveness")}
    assert paths == {"readiness": "/readyz", "liveness": "/livez"}
    live = SERVER["livenessProbe"]
    # A worker that drains is busy, not dead.
    assert live["periodSeconds"] * live["failureThreshold"] > settings().shutdown_timeout
    assert SERVER["ports"] == [{"name": "http", "containerPort": int(VARIABLES["PORT"])}]


def test_what_is_named_is_there() -> None:
    sources = [next(iter(source.items())) for source in SERVER["envFrom"]]
    assert ("configMapRef", {"name": "lightrag"}) in sources
    assert ("secretRef", {"name": "lightrag"}) in sources  # made by hand: keys are in no file
    (volume,) = POD["volumes"]
    assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in OBJECTS
    (mount,) = SERVER["volumeMounts"]
    for name in ("WORKING_DIR", "INPUT_DIR", "RESILIENCE_SHUTDOWN_JOURNAL"):
        assert VARIABLES[name].startswith(mount["mountPath"] + "/")
    assert not any("KEY" in name or "PASSWORD" in name for name in VARIABLES)


@pytest.mark.parametrize("name", ["lightrag", "redis"])
def test_each_service_finds_its_pods(name: str) -> None:
    service, deployment = OBJECTS["Service", name]["spec"], OBJECTS["Deployment", name]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert service["selector"] == labels == deployment["selector"]["matchLabels"]
    (port,) = service["ports"]
    (container,) = deployment["template"]["spec"]["containers"]
    assert port["targetPort"] in [each["name"] for each in container["ports"]]


def test_redis_is_where_the_server_looks_for_it() -> None:
    (port,) = OBJECTS["Service", "redis"]["spec"]["ports"]
    assert VARIABLES["RESILIENCE_REDIS_URL"] == f"redis://redis:{port['port']}/0"


DEPLOY = FOLDER.parent


def test_what_watches_the_server_finds_all_that_it_names() -> None:
    made = yaml.safe_load((DEPLOY / "kustomization.yml").read_text())
    objects = [
        each
        for name in made["resources"]
        for each in yaml.safe_load_all((DEPLOY / name).read_text())
    ]
    names = {(each["kind"], each["metadata"]["name"]) for each in objects}
    assert len(names) == len(objects)
    maps = {each["name"]: each["files"] for each in made["configMapGenerator"]}
    for files in maps.values():
        assert all((DEPLOY / file.rpartition("=")[2]).is_file() for file in files)
    mounted = {
        volume["configMap"]["name"]
        for each in objects
        if each["kind"] == "Deployment"
        for volume in each["spec"]["template"]["spec"].get("volumes", [])
        if "configMap" in volume
    }
    assert mounted == set(maps)
    assert {("Service", "prometheus"), ("Service", "alertmanager")} <= names


def test_prometheus_asks_each_pod_where_the_server_listens() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "kubernetes.yml").read_text())
    (scrape,) = config["scrape_configs"]
    (found,) = scrape["dns_sd_configs"]
    pods = next(
        each
        for each in yaml.safe_load_all((DEPLOY / "monitoring" / "kubernetes.yml").read_text())
        if each["metadata"]["name"] == found["names"][0]
    )
    assert pods["spec"]["clusterIP"] == "None"
    assert found["port"] == int(VARIABLES["PORT"])
    assert settings().metrics
    by_compose = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert scrape["job_name"] == by_compose["scrape_configs"][0]["job_name"]
