"""The manifests in ``deploy/kubernetes``: their times add up, and what they name is there."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("yaml")
pytest.importorskip("gunicorn")

import redis
import yaml

from lightrag_resilience import Guards
from lightrag_resilience.config.settings import Settings, load_settings
from lightrag_resilience.integrations.gunicorn import check_budget
from lightrag_resilience.redis_client.client import needed_rights
from lightrag_resilience.testing.redis_server import RedisServer
from support.paths import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
OBJECTS: dict[tuple[str, str], Any] = {
    (each["kind"], each["metadata"]["name"]): each
    for path in sorted(FOLDER.glob("*.yml"))
    for each in yaml.safe_load_all(path.read_text())
}
DEPLOY = FOLDER.parent
POD = OBJECTS["Deployment", "lightrag"]["spec"]["template"]["spec"]
(SERVER,) = POD["containers"]
VARIABLES: dict[str, str] = OBJECTS["ConfigMap", "lightrag"]["data"]


def everything() -> Iterator[Any]:
    """All objects that ``kubectl apply -k deploy`` makes, except config maps."""
    made = yaml.safe_load((DEPLOY / "kustomization.yml").read_text())
    for name in made["resources"]:
        yield from yaml.safe_load_all((DEPLOY / name).read_text())


def settings() -> Settings:
    ours = {name: text for name, text in VARIABLES.items() if name.startswith("RESILIENCE_")}
    return load_settings(ours)


def graceful_timeout() -> float:
    pytest.importorskip("lightrag")
    from lightrag_resilience.integrations.lightrag.serving import server_config as _serving  # noqa: PLC0415 - see above

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
    volumes = {each["name"]: each for each in POD["volumes"]}
    claim = volumes["data"]["persistentVolumeClaim"]["claimName"]
    assert ("PersistentVolumeClaim", claim) in OBJECTS
    mounts = {each["name"]: each for each in SERVER["volumeMounts"]}
    assert set(mounts) == set(volumes)
    mount = mounts["data"]
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


def variable(name: str) -> str:
    return str(next(each["value"] for each in SERVER["env"] if each["name"] == name))


def test_redis_is_where_the_server_looks_for_it() -> None:
    (port,) = OBJECTS["Service", "redis"]["spec"]["ports"]
    assert variable("RESILIENCE_REDIS_URL").rpartition("@")[2] == f"redis:{port['port']}/0"


def test_redis_is_reached_by_the_servers_pods_alone() -> None:
    policy = OBJECTS["NetworkPolicy", "redis"]["spec"]
    assert policy["podSelector"] == {"matchLabels": {"app": "redis"}}
    (rule,) = policy["ingress"]
    labels = OBJECTS["Deployment", "lightrag"]["spec"]["template"]["metadata"]["labels"]
    assert rule["from"] == [{"podSelector": {"matchLabels": labels}}]
    assert "egress" not in policy  # nor does it reach anything


def compose_redis() -> list[str]:
    text = (DEPLOY / "compose.yml").read_text(encoding="utf-8")
    text = re.sub(r"\$\{REDIS_PASSWORD:\?[^}]*\}", "$(REDISCLI_AUTH)", text)
    return list(yaml.safe_load(text)["services"]["redis"]["command"])


@pytest.mark.parametrize("manifest", ["kubernetes", "compose"])
def test_redis_has_one_user_whose_rights_suffice_and_no_other(manifest: str) -> None:
    pod = OBJECTS["Deployment", "redis"]["spec"]["template"]["spec"]
    command = pod["containers"][0]["args"] if manifest == "kubernetes" else compose_redis()
    password = "0123456789abcdef"  # noqa: S105 - of a server that lasts as long as this test
    words = [word.replace("$(REDISCLI_AUTH)", password) for word in command]
    given = " ".join(words[words.index(f">{password}") + 1 :])
    assert given == needed_rights("lr:")  # as the command acl prints
    with RedisServer(*words[1:]) as server:
        address = server.url.replace("//", f"//lightrag-resilience:{password}@")
        guards = Guards(settings=load_settings({"RESILIENCE_REDIS_URL": address}))
        try:
            asyncio.run(shared_call(guards))
        finally:
            guards.close()
        with (
            pytest.raises(redis.exceptions.AuthenticationError),
            redis.Redis(port=server.port) as anybody,
        ):
            anybody.ping()


async def shared_call(guards: Guards) -> None:
    """One call, and then wait until its breaker is shared."""
    await guards.get("llm").call(asyncio.sleep, 0)
    async with asyncio.timeout(30):
        while guards.link is None or not guards.link.is_up:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.02)


def test_no_container_has_more_rights_than_it_needs() -> None:
    deployments = [each for each in everything() if each["kind"] == "Deployment"]
    assert len(deployments) == 5
    for deployment in deployments:
        name, pod = deployment["metadata"]["name"], deployment["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["enableServiceLinks"] is False, name
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name


def test_what_watches_the_server_finds_all_that_it_names() -> None:
    made = yaml.safe_load((DEPLOY / "kustomization.yml").read_text())
    objects = list(everything())
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
