from __future__ import annotations

import json

import pytest

from server.app import ROUTES, create_app
from server.openapi import document, page
from server.settings import GatewaySettings
from tests.unit.server.conftest import Gateway

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("live_page", [True, False])
def test_every_route_that_is_served_is_described_and_no_other(live_page: bool) -> None:
    settings = GatewaySettings(engine_url="http://127.0.0.1:1", live_page=live_page)
    served = {
        (route.path, method.lower())
        for route in create_app(settings).router.routes
        for method in route.methods - {"HEAD"}  # type: ignore[attr-defined]
    }
    paths = document(ROUTES, settings, "1")["paths"]
    assert {(path, method) for path, methods in paths.items() for method in methods} == served


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
