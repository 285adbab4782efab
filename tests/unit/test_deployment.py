"""The Dockerfiles, the compose file, the dashboard and the Kubernetes manifests, as far as they can be held without
running them."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKER, K8S = ROOT / "docker", ROOT / "docker" / "kubernetes"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
MANIFESTS = sorted(path for path in K8S.rglob("*.yaml") if path.name != "kustomization.yaml")
COMPOSE = yaml.safe_load((DOCKER / "compose.yml").read_text())
KUBERNETES = "1.33"


def tool(name: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [str(Path(sys.executable).with_name(name)), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def objects(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def everything(kind: str) -> list[dict[str, Any]]:
    return [item for path in MANIFESTS for item in objects(path) if item["kind"] == kind]


def unless_set(value: str) -> str:
    """The default of a value in the compose file that a variable may set."""
    found = re.fullmatch(r"\$\{\w+:-(.+)\}", value)
    assert found is not None, value
    return found[1]


def pods() -> list[dict[str, Any]]:
    return [item["spec"]["template"]["spec"] for item in everything("Deployment") + everything("Job")]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_a_dockerfile_passes_hadolint(dockerfile: Path) -> None:
    result = tool("hadolint", dockerfile)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_is_small_and_pinned_and_does_not_run_as_root(dockerfile: Path) -> None:
    text = dockerfile.read_text()
    bases = re.findall(r"^FROM (\S+)", text, re.M)
    assert len(bases) == 2
    assert all(re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", base) for base in bases)
    assert re.findall(r"^USER (\S+)", text, re.M) == ["10001:10001"]
    assert "HEALTHCHECK" in text
    assert all("--constraint constraints.txt" in line for line in re.findall(r"pip install.*", text))


def test_the_compose_file_keeps_to_the_specification() -> None:
    result = tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", DOCKER / "compose.yml")
    assert result.returncode == 0, result.stdout


def test_every_image_of_the_compose_file_is_built_here_or_of_a_stated_version() -> None:
    for name, service in COMPOSE["services"].items():
        assert "build" in service or re.search(r":v?\d+\.\d+", service["image"]), name
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).exists(), name


def test_the_example_has_every_variable_that_the_compose_file_asks_for_and_no_secret_is_in_either() -> None:
    lines = [line for line in (DOCKER / "example.env").read_text().splitlines() if line and not line.startswith("#")]
    example = dict(line.split("=", 1) for line in lines)
    asked = set(re.findall(r"\$\{(\w+)", (DOCKER / "compose.yml").read_text()))
    assert asked <= set(example)
    for name, value in example.items():
        assert not value or "replace-me" in value, name
    assert "/docker/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_every_setting_in_the_env_file_reaches_the_api_and_the_workers_and_no_other_containers_password_does() -> None:
    for name in ("migrate", "api", "worker", "worker-cuda"):
        service = COMPOSE["services"][name]
        assert service["env_file"] == [{"path": ".env", "required": False}]
        for password in ("POSTGRES_PASSWORD", "VALKEY_PASSWORD", "GRAFANA_PASSWORD"):
            assert service["environment"][password] == ""
    for name in ("postgres", "valkey", "prometheus", "grafana"):
        assert "env_file" not in COMPOSE["services"][name]


def test_services_wait_for_the_health_checks_of_the_services_they_need() -> None:
    services = COMPOSE["services"]
    for service in services.values():
        waits = service.get("depends_on", {})
        for name, wait in waits.items() if isinstance(waits, dict) else ():
            assert wait["condition"] != "service_healthy" or "healthcheck" in services[name], name


def test_prometheus_finds_the_api_and_every_worker_where_they_answer() -> None:
    jobs = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    found = [place for job in jobs for place in job["dns_sd_configs"]]
    for place in found:
        for name in place["names"]:
            assert COMPOSE["services"][name]["environment"]["TENOR_OBSERVABILITY_METRICS_PORT"] == place["port"]
    assert "9100" not in str(COMPOSE["services"]["api"]["ports"])
    assert {name for place in found for name in place["names"]} == {"api", "worker", "worker-cuda"}
    (port,) = {place["port"] for place in found}
    for item in everything("Deployment"):
        (container,) = item["spec"]["template"]["spec"]["containers"]
        assert {"name": "TENOR_OBSERVABILITY_METRICS_PORT", "value": str(port)} in container["env"]
        assert {"name": "metrics", "containerPort": port} in container["ports"]
    (service,) = everything("Service")
    assert [port["targetPort"] for port in service["spec"]["ports"]] == ["http"]


def test_only_the_monitoring_rule_opens_the_metrics_port() -> None:
    rules = {item["metadata"]["name"]: item["spec"] for item in everything("NetworkPolicy")}
    (who,) = rules["tenor-metrics"]["podSelector"]["matchExpressions"]
    assert set(who["values"]) == {item["metadata"]["name"] for item in everything("Deployment")}
    (watcher,) = rules["tenor-metrics"]["ingress"]
    assert watcher["from"]
    assert watcher["ports"] == [{"protocol": "TCP", "port": 9100}]
    assert rules["tenor-api"]["ingress"] == [{"ports": [{"protocol": "TCP", "port": "http"}]}]


def test_production_containers_log_json() -> None:
    (config,) = everything("ConfigMap")
    assert config["data"]["TENOR_OBSERVABILITY_LOG_FORMAT"] == "json"
    for name in ("api", "worker", "worker-cuda"):
        assert unless_set(COMPOSE["services"][name]["environment"]["TENOR_OBSERVABILITY_LOG_FORMAT"]) == "json"


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_manifest_keeps_to_kubernetes_schemas(path: Path) -> None:
    for item in objects(path):
        if not item["apiVersion"].startswith("keda.sh/"):  # not Kubernetes' own
            kubernetes_validate.validate(item, KUBERNETES, strict=True)


@pytest.mark.parametrize("folder", ["base", "cuda"])
def test_a_kustomization_names_every_file_beside_it(folder: str) -> None:
    listed = yaml.safe_load((K8S / folder / "kustomization.yaml").read_text())["resources"]
    here = {path.name for path in MANIFESTS if path.parent.name == folder}
    assert {name for name in listed if not name.startswith("..")} == here


def test_no_container_runs_as_root_or_has_a_writable_root_file_system() -> None:
    assert len(pods()) == 4
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        context = container["securityContext"]
        assert (context["readOnlyRootFilesystem"], context["allowPrivilegeEscalation"]) == (True, False)
        assert {"requests", "limits"} <= set(container["resources"])
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounted == {"/tmp", "/var/lib/tenor"}


def test_every_deployment_has_a_probe_and_a_disruption_budget() -> None:
    budgets = {item["spec"]["selector"]["matchLabels"]["app"] for item in everything("PodDisruptionBudget")}
    deployments = everything("Deployment")
    assert {item["metadata"]["name"] for item in deployments} == budgets
    for item in deployments:
        assert item["spec"]["selector"]["matchLabels"].items() <= item["spec"]["template"]["metadata"]["labels"].items()
        assert "livenessProbe" in item["spec"]["template"]["spec"]["containers"][0]


def test_a_worker_is_given_longer_to_end_than_it_takes() -> None:
    (config,) = everything("ConfigMap")
    drain = int(config["data"]["TENOR_WORKER_DRAIN_S"])
    for item in everything("Deployment"):
        assert item["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == drain + 15
    for name in ("worker", "worker-cuda"):
        service = COMPOSE["services"][name]
        assert (
            service["stop_grace_period"] == f"{int(unless_set(service['environment']['TENOR_WORKER_DRAIN_S'])) + 15}s"
        )


def test_the_number_of_workers_follows_the_queue_alone() -> None:
    workers = {
        item["metadata"]["name"]: item for item in everything("Deployment") if "worker" in item["metadata"]["name"]
    }
    scaled = {item["spec"]["scaleTargetRef"]["name"]: item for item in everything("ScaledObject")}
    (login,) = everything("TriggerAuthentication")
    assert set(workers) == set(scaled)
    for name, item in scaled.items():
        assert "replicas" not in workers[name]["spec"]
        for trigger in item["spec"]["triggers"]:
            assert (trigger["type"], trigger["metricType"]) == ("postgresql", "Value")
            assert trigger["authenticationRef"]["name"] == login["metadata"]["name"]
            assert {"query", "targetQueryValue"} == set(trigger["metadata"])
