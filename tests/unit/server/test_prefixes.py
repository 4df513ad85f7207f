from __future__ import annotations

import os

from hypothesis import given, settings
from hypothesis import strategies as st

from server.prefixes import BLOCK_BYTES, HEAD_BYTES, PrefixRecord, block_hashes

KEY = b"k"


def common_blocks(one: bytes, other: bytes) -> int:
    """A slow reference: whole blocks that two prompts begin with in common."""
    return sum(
        one[: BLOCK_BYTES * (i + 1)] == other[: BLOCK_BYTES * (i + 1)]
        for i in range(min(len(one), len(other)) // BLOCK_BYTES)
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5 * BLOCK_BYTES), min_size=1, max_size=4), st.data())
def test_the_overlap_is_what_prompts_have_in_common_in_whole_blocks(cuts: list[int], data: st.DataObject) -> None:
    text = os.urandom(5 * BLOCK_BYTES)
    prompts = [text[:cut] + bytes([i]) * data.draw(st.integers(0, 2 * BLOCK_BYTES)) for i, cut in enumerate(cuts)]
    record = PrefixRecord()
    for prompt in prompts[1:]:
        record.add(block_hashes(prompt, KEY))
    wanted = max((common_blocks(prompts[0], prompt) for prompt in prompts[1:]), default=0)
    assert record.overlap(block_hashes(prompts[0], KEY)) == wanted


def test_the_record_is_bounded_and_forgets_the_ends_of_old_prompts_first() -> None:
    record = PrefixRecord(capacity=6)
    first, second = (block_hashes(os.urandom(4 * BLOCK_BYTES), KEY) for _ in range(2))
    record.add(first)
    record.add(second)
    assert len(record) == 6
    assert (record.overlap(first), record.overlap(second)) == (2, 4)
    record.clear()
    assert record.overlap(second) == 0


def test_a_long_prompt_is_not_read_to_its_end() -> None:
    assert len(block_hashes(b"x" * (10 * HEAD_BYTES), KEY)) == HEAD_BYTES // BLOCK_BYTES


def test_hashes_of_another_process_are_others() -> None:
    prompt = b"x" * BLOCK_BYTES
    assert block_hashes(prompt, b"a") != block_hashes(prompt, b"b")
    assert block_hashes(prompt[1:], b"a") == ()
