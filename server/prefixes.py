"""Which engine has probably computed the beginning of a prompt already. Only keyed hashes are kept, never a prompt."""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Sequence

BLOCK_BYTES = 512
"""Some hundred tokens: a few blocks of an engine's own cache of prefixes."""
MAX_BLOCKS = 32
"""Further blocks of a prompt are not looked at."""
HEAD_BYTES = BLOCK_BYTES * MAX_BLOCKS
DIGEST_BYTES = 8


def block_hashes(head: bytes, key: bytes) -> tuple[bytes, ...]:
    """A hash for each whole block of a prompt's beginning, of that block and all before it.

    Args:
        head: the prompt's first bytes.
        key: secret of this process, so that hashes cannot be looked up.
    """
    hashes: list[bytes] = []
    last = b""
    for start in range(0, min(len(head), HEAD_BYTES) - BLOCK_BYTES + 1, BLOCK_BYTES):
        block = last + head[start : start + BLOCK_BYTES]
        last = hashlib.blake2b(block, digest_size=DIGEST_BYTES, key=key).digest()
        hashes.append(last)
    return tuple(hashes)


def new_key() -> bytes:
    """A key for `block_hashes`."""
    return secrets.token_bytes(16)


class PrefixRecord:
    """The hashes of the prompts that one engine got last.

    Args:
        capacity: how many hashes are kept; the least recently seen go first.
    """

    def __init__(self, capacity: int = 8192):
        self._capacity = capacity
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def overlap(self, hashes: Sequence[bytes]) -> int:
        """How many blocks at the beginning of a prompt are known."""
        for count, one in enumerate(hashes):
            if one not in self._seen:
                return count
        return len(hashes)

    def add(self, hashes: Sequence[bytes]) -> None:
        """Notes a prompt; its first blocks are forgotten last, without which the later ones are of no use."""
        for one in reversed(hashes):
            self._seen[one] = None
            self._seen.move_to_end(one)
        while len(self._seen) > self._capacity:
            self._seen.popitem(last=False)

    def clear(self) -> None:
        """Forgets all: the engine has been started anew."""
        self._seen.clear()
