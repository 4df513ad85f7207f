"""A proposer that runs a small draft as one native function, beside the engine's model.

vLLM's own draft-model proposer takes the draft through all that a served model goes through, for every draft token. On a GPU
CUDA graphs hide that; on a CPU it is most of the draft's cost. This one is vLLM's ``custom_class`` method (``DirectProposer``):
it keeps its own cache for each request, reads only the tokens that are new to it, and draws each token from the draft's softmax
at the request's temperature, as vLLM's probabilistic drafting does; or, where the pair asks for greedy drafting, the likeliest
token at any temperature. The engine judges the draft tokens as ever.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from server.drafting import ADDITIONAL, SAMPLING
from server.in_engine.draft_network import DraftNetwork

CACHE_BYTES = 1 << 30
"""What the draft's own cache may take; requests beyond it are served without draft tokens."""

CHUNK = 512
"""Tokens of a prompt that are read at a time, which bounds the attention's scores."""

SHORT = 8
"""New tokens of a request that are read one by one with its draft tokens; more are read as a chunk."""

CALM = 32
"""Steps that fewer requests must last before more draft tokens are proposed again.

Requests that are sent together come and go one by one: without this, the first of them would have their prompts read by the draft
just before the batch is too large for it, and the last of them when they are nearly done.
"""

JUST_BEGUN = 2
"""Tokens of an answer up to which it is followed whatever is left of it.

Two, because answers that begin together wait a step, and so does the first one after a crowd: more may be on their way, and soon
too many to draft for.
"""

ENDLESS = 1 << 30

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy, as in vLLM's sampler."""

_log = logging.getLogger("vllm.understudy.direct_drafting")


@dataclass(frozen=True)
class Row:
    """One request of a step.

    Attributes:
        tokens: all its tokens so far, the newest last.
        temperature: below ``GREEDY_BELOW`` it is decoded greedily.
        generator: of a request with a seed.
        answered: how many of the tokens are its answer's.
        left: how many more its answer may get; 0 where it has ended.
    """

    request_id: str
    tokens: Sequence[int]
    temperature: float = 0.0
    generator: torch.Generator | None = None
    answered: int = 1
    left: int = ENDLESS


@dataclass
class _Sequence:
    """What the draft remembers of one request.

    Attributes:
        known: tokens of the request whose keys and values are in the slot.
        guesses: draft tokens whose keys and values follow them there.
    """

    slot: int
    known: int = 0
    guesses: list[int] = field(default_factory=list)

    def catch_up(self, tokens: Sequence[int]) -> None:
        """Counts the guesses that came true as known; the newest token is always read again, for what follows it."""
        for guess in self.guesses:
            if self.known >= len(tokens) - 1 or tokens[self.known] != guess:
                break
            self.known += 1
        self.guesses = []
        self.known = min(self.known, len(tokens) - 1)


class Drafter:
    """A draft network and the requests that it follows.

    Args:
        network: the draft.
        cache_bytes: see ``CACHE_BYTES``.
    """

    def __init__(self, network: DraftNetwork, cache_bytes: int = CACHE_BYTES):
        self._network = network
        self._max_positions = cache_bytes // network.bytes_per_position
        self._sequences: dict[str, _Sequence] = {}

    def warm_up(self) -> None:
        """Compiles the native function (or fetches it from numba's cache), so that no request waits for it."""
        self.draft([Row("greedy", [0]), Row("sampled", [0], 1.0)], 1)
        self.draft([Row("greedy", [0])], 1)
        self.forget_all_but([])

    def forget_all_but(self, request_ids: Sequence[str]) -> None:
        """Frees the slots of requests that are gone; a cache that a long one has blown up is given back once nobody uses it."""
        for request_id in self._sequences.keys() - set(request_ids):
            del self._sequences[request_id]
        if not self._sequences:
            self._network.release(self._max_positions // 4)

    def draft(self, rows: Sequence[Row], count: int) -> tuple[dict[str, list[int]], Tensor | None]:
        """``count`` draft tokens for each row that is worth it and that the cache has room for; fewer where its answer ends before.

        Returns:
            Draft tokens by request, and the probabilities that they were drawn from, float32
            [drafted requests, count, vocabulary] in the same order; None where all are greedy.
        """
        wanted = [row for row in rows if row.left > 1]  # the step that judges draft tokens adds one token by itself
        count = min(count, max((row.left - 1 for row in wanted), default=0))
        drafted = [(row, found) for row in wanted if (found := self._follow(row, count)) is not None]
        if not drafted:
            return {}, None
        for row, sequence in drafted:
            self._read_prompt(row.tokens, sequence)
        guesses, probabilities = self._network.draft(
            [[int(token) for token in row.tokens[sequence.known :]] for row, sequence in drafted],
            [sequence.known for _, sequence in drafted],
            [sequence.slot for _, sequence in drafted],
            [row.temperature if row.temperature >= GREEDY_BELOW else 0.0 for row, _ in drafted],
            uniforms([row for row, _ in drafted], count),
        )
        for (row, sequence), guess in zip(drafted, guesses, strict=True):
            sequence.known, sequence.guesses = len(row.tokens), guess[:-1]
        by_request = {row.request_id: guess[: row.left - 1] for (row, _), guess in zip(drafted, guesses, strict=True)}
        return by_request, probabilities

    def _follow(self, row: Row, count: int) -> _Sequence | None:
        """The row's sequence, up to date; None where the cache has no room for it, or where it is too late to begin.

        Reading a text takes the draft about as long as proposing as many tokens: where it has not followed an answer so far, what
        is left of that must be worth it. Of an answer that has just begun that is known from measuring.
        """
        found = self._sequences.get(row.request_id)
        unread = len(row.tokens) - (found.known if found else 0)
        if row.answered > JUST_BEGUN and unread > max(row.left, SHORT):
            return None
        if found is None:
            taken = {other.slot for other in self._sequences.values()}
            found = _Sequence(next(slot for slot in range(len(taken) + 1) if slot not in taken))
        if not self._network.reserve(found.slot + 1, len(row.tokens) + count, self._max_positions):
            self._sequences.pop(row.request_id, None)
            return None
        self._sequences[row.request_id] = found
        found.catch_up(row.tokens)
        return found

    def _read_prompt(self, tokens: Sequence[int], sequence: _Sequence) -> None:
        """Reads in chunks what is too long to be read token by token; the last token is left for the first draft token."""
        while (left := len(tokens) - 1 - sequence.known) > SHORT:
            chunk = [int(token) for token in tokens[sequence.known : sequence.known + min(left, CHUNK)]]
            self._network.read(chunk, sequence.known, sequence.slot)
            sequence.known += len(chunk)


def progress(request: Any) -> tuple[int, int]:
    """How many tokens of an answer there are, and how many more it may get (as vLLM's ``check_stop`` has it) or must.

    Args:
        request: the model runner's record of a request.
    """
    answer, sampling = request.output_token_ids, request.sampling_params
    if sampling is None:
        return len(answer), ENDLESS
    if answer and (answer[-1] == sampling.eos_token_id or answer[-1] in (sampling.stop_token_ids or ())):
        return len(answer), 0
    left = ENDLESS if sampling.max_tokens is None else sampling.max_tokens - len(answer)
    if (least := sampling.min_tokens) > len(answer):  # up to there vLLM masks the end, behind all draft tokens too
        left = min(left, least - len(answer))
    return len(answer), left


def is_forced(request: Any) -> bool:
    """Whether a grammar forces an answer's shape.

    vLLM drops draft tokens from the first one on that the grammar forbids. Had they been drawn, whether a place is judged at all
    would depend on what was drawn there, and what is sampled in its place would not follow the target; likeliest tokens are no
    draw.
    """
    sampling = request.sampling_params
    return sampling is not None and sampling.structured_outputs is not None


def uniforms(rows: Sequence[Row], count: int) -> Any:
    """Float64 numbers in [0, 1) [rows, count] as a numpy array; a row with a generator draws from that."""
    drawn = torch.rand(len(rows), count, dtype=torch.float64)
    for index, row in enumerate(rows):
        if row.generator is not None and row.temperature >= GREEDY_BELOW:
            drawn[index] = torch.rand(count, dtype=torch.float64, generator=row.generator)
    return drawn.numpy()


class DirectProposer:
    """vLLM's ``custom_class`` interface over ``Drafter``.

    vLLM gives a proposer of that kind tokens only. It is also told of request names, temperatures and the number of draft
    tokens, and its probabilities are handed to the rejection sampler, by methods of the model runner (``attach``).
    """

    def __init__(self, vllm_config: Any):
        self._folder = Path(vllm_config.additional_config[ADDITIONAL])
        self._greedy = vllm_config.additional_config.get(SAMPLING) == "greedy"
        self._drafter: Drafter | None = None
        self._counts: deque[int] = deque(maxlen=CALM)
        self._last: frozenset[str] = frozenset()
        self._after_crowd = False
        attach()

    def load_model(self, target: Any) -> None:
        """Loads the draft; the target is not needed."""
        with torch.inference_mode():
            self._drafter = Drafter(DraftNetwork(self._folder, eight_bit=True))
            self._drafter.warm_up()
        _log.info("drafting directly from %s", self._folder)

    def propose(self, *_: Any, **__: Any) -> list[list[int]]:
        """What vLLM looks for; the model runner calls ``propose_for``."""
        raise RuntimeError("the model runner of this vLLM is not the one that direct drafting is written for")

    def propose_for(self, runner: Any, sampled: Sequence[Sequence[int]], sampling: Any, count: int) -> list[list[int]]:
        """Draft tokens for every request of the batch, none for those whose prompt is not read yet.

        Args:
            runner: the model runner; it is left with the probabilities that the tokens were drawn from.
            sampled: the tokens that each request has just got.
            sampling: the batch's sampling metadata.
            count: draft tokens for each request, as the schedule has it for this step's batch; the least of the last ``CALM`` steps
                counts.
        """
        assert self._drafter is not None
        batch = runner.input_batch
        count = self._calm(count, frozenset(batch.req_ids))
        self._drafter.forget_all_but(batch.req_ids)
        if not count:
            runner._draft_probs = runner._draft_prob_req_ids = None
            return [[] for _ in batch.req_ids]
        likeliest = self._greedy or sampling.all_greedy
        temperatures = [0.0] * len(sampled) if likeliest else sampling.temperature.tolist()
        rows = [
            Row(request_id, batch.token_ids_cpu[index, : batch.num_tokens_no_spec[index]],
                0.0 if is_forced(runner.requests[request_id]) else temperatures[index], sampling.generators.get(index),
                *progress(runner.requests[request_id]))
            for index, request_id in enumerate(batch.req_ids)
            if sampled[index]
        ]  # fmt: skip
        begun = sum(row.answered <= 1 for row in rows)
        if begun > 1 or self._after_crowd:
            rows = [row for row in rows if row.answered > 1]
        self._after_crowd &= not begun
        drafts, probabilities = self._drafter.draft(rows, count) if rows else ({}, None)
        runner._draft_probs = probabilities
        runner._draft_prob_req_ids = None if probabilities is None else list(drafts)
        return [drafts.get(request_id, []) for request_id in batch.req_ids]

    def _calm(self, count: int, requests: frozenset[str]) -> int:
        """The least count of the last ``CALM`` steps; of those since none of its requests was there, if that is less long ago.

        It also notes whether those who were there before had been too many: then more may be on their way behind the first one.
        """
        if not requests & self._last:
            self._after_crowd = 0 in self._counts
            self._counts.clear()
        self._last = requests
        self._counts.append(count)
        return min(self._counts)


def attach() -> None:
    """Lets the model runner give a ``DirectProposer`` what ``propose_for`` needs; harmless when done twice."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    proposing = GPUModelRunner.propose_draft_token_ids
    if getattr(proposing, "direct", False):
        return

    def propose_draft_token_ids(self: Any, scheduled: Any, sampled: Any, metadata: Any, *rest: Any) -> Any:
        if not isinstance(self.drafter, DirectProposer):
            return proposing(self, scheduled, sampled, metadata, *rest)
        return self.drafter.propose_for(self, sampled, metadata, scheduled.num_spec_tokens_to_schedule)

    def fits(self: Any, metadata: Any) -> bool:
        return isinstance(self.drafter, DirectProposer) or fitting(self, metadata)

    fitting = GPUModelRunner._input_fits_in_drafter
    GPUModelRunner._input_fits_in_drafter = (
        fits  # else one request near the longest length gives all of them draft tokens of 0
    )
    propose_draft_token_ids.direct = True  # type: ignore[attr-defined]
    GPUModelRunner.propose_draft_token_ids = propose_draft_token_ids
    GPUModelRunner._prepare_inputs = plainly(GPUModelRunner._prepare_inputs)
    GPUModelRunner._preprocess = plainly(GPUModelRunner._preprocess)


def plainly(method: Any) -> Any:
    """A model runner's method, for which an engine is a plain one in steps that have no draft tokens to judge.

    vLLM prepares every step of an engine with a draft for judging, and sends it through the rejection sampler. Where the schedule
    drafts nothing, that costs a twentieth of the step. Targets with a recurrent state are left alone: they find it by that.

    Args:
        method: one that is called with what the scheduler made of the step, and reads ``speculative_config``.
    """

    def called(self: Any, scheduled: Any, *rest: Any, **more: Any) -> Any:
        if scheduled.scheduled_spec_decode_tokens or self.model_config.is_hybrid:
            return method(self, scheduled, *rest, **more)
        config, self.speculative_config = self.speculative_config, None
        try:
            return method(self, scheduled, *rest, **more)
        finally:
            self.speculative_config = config

    return called
