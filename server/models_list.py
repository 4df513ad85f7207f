"""``/v1/models``: the lists of the engines, joined to one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from server.errors import Refusal
from server.fleet import Fleet
from server.member import Member
from server.upstream import EngineFailed, finish, read_all, refusal_from

MODELS = "/v1/models"


def without_folders(body: bytes, may_use: Callable[[str], bool] = lambda model: True) -> bytes:
    """The engine's list of models without the folders that they were loaded from (vLLM's ``root``).

    Args:
        body: the engine's answer.
        may_use: which models are shown.

    Raises:
        EngineFailed: the engine's answer is not a list of models.
    """
    try:
        answer = json.loads(body)
        answer["data"] = [model for model in answer["data"] if may_use(model["id"])]
        for model in answer["data"]:
            model["root"] = model["id"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise EngineFailed("the engine's list of models cannot be read") from error
    return json.dumps(answer).encode()


async def list_models(fleet: Fleet, may_use: Callable[[str], bool] = lambda model: True) -> bytes:
    """All models that can be asked for: of the only engine all it names, of several what the settings say they serve.

    Args:
        fleet: the engines.
        may_use: which models are shown.

    Raises:
        Refusal: no engine gives a list.
        EngineFailed: the only answer there is cannot be read.
    """
    now_s = fleet.clock()
    members = [member for member in fleet.members.values() if fleet.usable(member, now_s)]
    if not members:
        wait_s = fleet.settings.retry_after_s
        raise Refusal(503, "the engine cannot be reached; try again later", "engine_unreachable", retry_after_s=wait_s)
    asked = await asyncio.gather(*(_of_one(member, fleet, may_use) for member in members), return_exceptions=True)
    answers = {member: answer for member, answer in zip(members, asked, strict=True) if isinstance(answer, bytes)}
    if not answers:
        raise next(error for error in asked if isinstance(error, BaseException))
    return next(iter(answers.values())) if fleet.simple else joined(answers)


async def _of_one(member: Member, fleet: Fleet, may_use: Callable[[str], bool]) -> bytes:
    async with asyncio.timeout(fleet.settings.ready_timeout_s):
        response = await member.upstream.send("GET", MODELS)
        try:
            body = await read_all(response)
        finally:
            finish(response)
    refusal = refusal_from(response.status, body, MODELS, fleet.settings.retry_after_s)
    if refusal is not None:
        raise refusal
    return without_folders(body, may_use)


def joined(answers: dict[Member, bytes]) -> bytes:
    """One list of what several engines serve, each model as the first engine describes it."""
    found: dict[str, Any] = {}
    for member, body in answers.items():
        for model in json.loads(body)["data"]:
            if model["id"] == member.entry.served_model:
                found.setdefault(model["id"], model)
    return json.dumps({"object": "list", "data": list(found.values())}).encode()
