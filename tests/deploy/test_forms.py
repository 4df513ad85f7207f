"""The other forms of compose.yaml, as docker-compose understands them; what they start is not started here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.docker_engine import Docker
from tests.deploy.stand_in import ROOT

MINE = {"MODEL": "./models/mine", "PAIR": "./build/mine"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The compose files beside an .env of their own, as in a checkout."""
    for name in ("compose.yaml", *(f"docker/{file.name}" for file in (ROOT / "docker").glob("compose.*.yaml"))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    return tmp_path


def read(docker: Docker, project: Path, form: str, **settings: object) -> dict[str, Any]:
    """compose.yaml with one of its forms."""
    (project / ".env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    files = ("-f", "compose.yaml", "-f", f"docker/compose.{form}.yaml")
    return dict(yaml.safe_load(docker.run("docker-compose", *files, "config", cwd=project)))


def test_the_gpu_form_reserves_gpus_and_keeps_compiled_kernels(docker: Docker, project: Path) -> None:
    found = read(docker, project, "gpu", TENSOR_PARALLEL_SIZE=2, GPUS=2, **MINE)
    engine = found["services"]["engine"]
    (device,) = engine["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"], int(device["count"])) == ("nvidia", ["gpu"], 2)
    assert engine["build"]["dockerfile"] == "docker/engine.gpu.Dockerfile"
    assert "--tensor-parallel-size=2" in engine["command"]
    mounts = dict(reversed(volume.split(":")[:2]) for volume in engine["volumes"])
    assert mounts == {
        "/cache": "gpu-cache",
        "/model": str(project / "models/mine"),
        "/pair": str(project / "build/mine"),
    }
    assert "gpu-cache" in found["volumes"]
    assert "ports" not in engine
    assert found["services"]["builder"]["command"] == ["/project/recipes/llama-3.1-8b.yaml"]


def test_all_gpus_are_taken_unless_told_otherwise(docker: Docker, project: Path) -> None:
    engine = read(docker, project, "gpu", **MINE)["services"]["engine"]
    (device,) = engine["deploy"]["resources"]["reservations"]["devices"]
    assert str(device["count"]) in ("all", "-1")
    assert "--tensor-parallel-size=1" in engine["command"]


@pytest.mark.parametrize("left_out", sorted(MINE))
def test_the_gpu_form_has_no_default_target_nor_pair(docker: Docker, project: Path, left_out: str) -> None:
    given = {name: value for name, value in MINE.items() if name != left_out}
    with pytest.raises(AssertionError, match=f": set {left_out} to the folder"):
        read(docker, project, "gpu", **given)


def test_the_scale_form_has_two_engines_and_a_gateway_before_both(docker: Docker, project: Path) -> None:
    services = read(docker, project, "scale")["services"]
    assert services["engine"]["command"] == services["engine-b"]["command"]
    assert services["engine"]["image"] == services["engine-b"]["image"]
    assert set(services["gateway"]["depends_on"]) == {"engine", "engine-b"}
    assert "--config=/etc/understudy/two.yaml" in services["gateway"]["command"]
    assert "ports" not in services["engine-b"]
    assert services["engine"]["build"] == services["engine-b"]["build"]


def test_the_canary_form_gives_the_second_engine_its_own_pair(docker: Docker, project: Path) -> None:
    services = read(docker, project, "scale", GATEWAY_CONFIG="canary.yaml", PAIR_B="./build/other")["services"]
    assert "--config=/etc/understudy/canary.yaml" in services["gateway"]["command"]
    other = str(project / "build/other")
    assert f"{other}:/pair:ro" in services["engine-b"]["volumes"]
    assert f"{other}:/pair-b:ro" in services["gateway"]["volumes"]
    assert any(volume.startswith("pair:/pair") for volume in services["engine"]["volumes"])


def test_the_keys_form_hands_secrets_over_as_files(docker: Docker, project: Path) -> None:
    found = read(docker, project, "keys")
    gateway, grafana = found["services"]["gateway"], found["services"]["grafana"]
    assert gateway["environment"]["UNDERSTUDY_TENANTS_FILE"] == "/run/secrets/tenants"
    assert grafana["environment"]["GF_SECURITY_ADMIN_PASSWORD__FILE"] == "/run/secrets/grafana_password"
    assert grafana["environment"]["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "false"
    assert found["secrets"]["tenants"]["file"] == str(project / "docker/secrets/tenants.yaml")
    assert [secret["source"] for secret in gateway["secrets"]] == ["tenants"]


def test_the_keeper_alone_has_dockers_socket(docker: Docker, project: Path) -> None:
    services = read(docker, project, "keeper")["services"]
    with_socket = {name for name, service in services.items() if "docker.sock" in str(service.get("volumes"))}
    assert with_socket == {"keeper"}
    assert services["keeper"]["network_mode"] == "none"
    assert services["keeper"]["cap_drop"] == ["ALL"]
