import json

import pytest

from server.models_list import without_folders
from server.upstream import EngineFailed


def test_folders_are_left_out_and_all_else_stays() -> None:
    model = {"id": "m", "object": "model", "root": "/home/someone/models/m", "max_model_len": 512}
    answer = json.loads(without_folders(json.dumps({"object": "list", "data": [model]}).encode()))
    assert answer == {"object": "list", "data": [{**model, "root": "m"}]}


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"data": null}', b'{"data": [{}]}', b'{"data": [3]}'])
def test_an_unreadable_list_is_the_engines_failure(body: bytes) -> None:
    with pytest.raises(EngineFailed):
        without_folders(body)
