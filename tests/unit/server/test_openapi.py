from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi import FastAPI

from server.admin import create_admin_app
from server.app import ROUTES, create_app
from server.known_fields import KNOWN
from server.openapi import admin_document, document, page
from server.settings import GatewaySettings
from server.tenants import hash_key
from tests.unit.server.conftest import Gateway

pytestmark = pytest.mark.anyio


TENANTS = json.dumps({"tenants": [{"name": "a", "keys": [hash_key("sk-a")]}]})


def served(app: FastAPI) -> set[tuple[str, str]]:
    return {
        (route.path, method.lower())
        for route in app.router.routes
        for method in route.methods - {"HEAD"}  # type: ignore[attr-defined]
    }


def described(found: dict[str, Any]) -> set[tuple[str, str]]:
    return {(path, method) for path, methods in found["paths"].items() for method in methods}


@pytest.mark.parametrize("live_page", [True, False])
@pytest.mark.parametrize("admin_port", [None, 0])
def test_every_route_that_is_served_is_described_and_no_other(live_page: bool, admin_port: int | None) -> None:
    settings = GatewaySettings(engine_url="http://127.0.0.1:1", live_page=live_page, admin_port=admin_port)
    app = create_app(settings)
    assert described(document(ROUTES, settings, "1")) == served(app)
    assert described(admin_document(settings, "1")) == served(create_admin_app(app.state.gateway, "1"))


def test_keys_and_their_refusals_are_described_where_there_are_tenants() -> None:
    for settings, wanted in ((GatewaySettings(), False), (GatewaySettings.model_validate({"tenants": TENANTS}), True)):
        found = document(ROUTES, settings, "1")
        chat, models = found["paths"]["/v1/chat/completions"]["post"], found["paths"]["/v1/models"]["get"]
        assert ("securitySchemes" in found["components"]) is wanted
        assert [("security" in one, "401" in one["responses"]) for one in (chat, models)] == [(wanted, wanted)] * 2
        assert ("403" in chat["responses"]) is wanted
        assert ("X-Ratelimit-Limit-Tokens" in chat["responses"]["200"]["headers"]) is wanted


def test_strict_mode_names_the_fields_it_knows() -> None:
    found = document(ROUTES, GatewaySettings(strict=True), "1")
    body = found["paths"]["/v1/embeddings"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["additionalProperties"] is False
    assert set(body["properties"]) == KNOWN["embeddings"]


def test_names_of_operations_are_unique_and_references_point_somewhere() -> None:
    found = document(ROUTES, GatewaySettings(), "1")
    names = [operation["operationId"] for methods in found["paths"].values() for operation in methods.values()]
    assert len(names) == len(set(names))
    references = {part.partition('"')[0] for part in json.dumps(found).split('"$ref": "#/')[1:]}
    for reference in references:
        place = found
        for key in reference.split("/"):
            place = place[key]


def test_the_limits_are_those_of_the_settings() -> None:
    found = document(ROUTES, GatewaySettings(max_sequences=7), "1")
    body = found["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["n"]["maximum"] == 7


async def test_it_is_served_as_json_and_as_a_page_without_scripts(gateway: Gateway) -> None:
    async with gateway([]) as running:
        async with running.client.get(running.url + "/openapi.json") as response:
            found = await response.json()
        async with running.client.get(running.url + "/docs") as response:
            text = await response.text()
    assert text == page(found)
    assert "/v1/chat/completions" in text
    assert "<script" not in text
