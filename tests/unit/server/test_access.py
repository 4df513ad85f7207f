from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from server.access import Access
from server.errors import Refusal
from server.settings import GatewaySettings
from server.tenants import DEFAULT, hash_key
from stages.errors import InputError


def write(path: Path, **keys: str) -> Path:
    """A tenants file: names with their keys."""
    tenants = [{"name": name, "keys": [hash_key(key)]} for name, key in keys.items()]
    path.write_text(json.dumps({"tenants": tenants}))
    return path


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def access(tmp_path: Path, lines: list[str]) -> Access:
    return Access(GatewaySettings(tenants_file=write(tmp_path / "t.yaml", a="sk-a", b="sk-b")), lines.append)


def test_a_key_stands_for_its_tenant(access: Access) -> None:
    assert access.tenant_of("Bearer sk-a").name == "a"
    assert access.tenant_of("bearer  sk-b ").name == "b"


@pytest.mark.parametrize(
    ("header", "code"),
    [(None, "missing_api_key"), ("", "missing_api_key"), ("Bearer", "missing_api_key"), ("Basic sk-a", "missing_api_key"),
     ("Bearer sk-c", "invalid_api_key"), ("Bearer sk-a sk-b", "invalid_api_key"), ("Bearer caf\xe9", "invalid_api_key")],
)  # fmt: skip
def test_without_a_good_key_it_is_401_and_never_worth_a_retry(access: Access, header: str, code: str) -> None:
    with pytest.raises(Refusal) as caught:
        access.tenant_of(header)
    assert (caught.value.status, caught.value.code) == (401, code)
    assert caught.value.headers["x-should-retry"] == "false"
    assert "sk-" not in caught.value.message


def test_without_tenants_everybody_is_the_default_one() -> None:
    assert Access(GatewaySettings()).tenant_of(None).name == DEFAULT


def test_the_text_can_come_without_a_file(tmp_path: Path) -> None:
    text = write(tmp_path / "t", a="sk-a").read_text()
    assert Access(GatewaySettings(tenants=text)).tenant_of("Bearer sk-a").name == "a"
    with pytest.raises(InputError, match="UNDERSTUDY_TENANTS"):
        Access(GatewaySettings(tenants="x"))


def test_a_bad_file_at_the_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        Access(GatewaySettings(tenants_file=tmp_path / "none"))


def test_a_changed_file_is_read_once(access: Access, lines: list[str]) -> None:
    assert access.path is not None
    access.reload_if_changed()
    assert lines == []
    write(access.path, a="sk-new")
    access.reload_if_changed()
    access.reload_if_changed()
    assert len(lines) == 1
    assert access.tenant_of("Bearer sk-new").name == "a"
    with pytest.raises(Refusal):
        access.tenant_of("Bearer sk-a")


def test_a_bad_file_is_told_of_once_and_the_old_one_stays(access: Access, lines: list[str]) -> None:
    assert access.path is not None
    for spoil in (lambda path: path.write_text("tenants: []"), os.remove):
        spoil(access.path)
        access.reload_if_changed()
        access.reload_if_changed()
        assert access.tenant_of("Bearer sk-a").name == "a"
        assert access.refused is not None
    assert len(lines) == 2
    write(access.path, c="sk-c")
    access.reload_if_changed()
    assert access.tenant_of("Bearer sk-c").name == "c"
    assert access.refused is None
