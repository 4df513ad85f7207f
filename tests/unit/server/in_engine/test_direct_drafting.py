"""Direct drafting: the draft's own continuation, drawn from the probabilities that are handed over, whatever came before."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from drafts.distribution import critical_value
from server.in_engine.direct_drafting import (
    CALM,
    CHUNK,
    ENDLESS,
    DirectProposer,
    Drafter,
    Row,
    plainly,
    progress,
)
from server.in_engine.draft_network import DraftNetwork
from tests.unit.pruning.pico import LLAMA, ids, save


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(LLAMA.model(max_position_embeddings=2048), tmp_path_factory.mktemp("draft"))


@pytest.fixture(scope="module")
def model(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture
def drafter(folder: Path) -> Drafter:
    return Drafter(DraftNetwork(folder))


def continued(model: PreTrainedModel, tokens: list[int], count: int) -> list[int]:
    """The slow reference: greedy tokens, each from a forward pass over everything."""
    found = list(tokens)
    for _ in range(count):
        found.append(int(model(torch.tensor([found])).logits[0, -1].argmax()))
    return found[len(tokens) :]


@torch.inference_mode()
def test_greedy_drafts_are_the_drafts_own_continuation_after_accepted_and_rejected_tokens(
    drafter: Drafter, model: PreTrainedModel
) -> None:
    tokens = {
        name: ids(1, length, seed)[0].tolist() for name, length, seed in (("a", 30, 1), ("b", 3, 2), ("c", 17, 3))
    }
    accepted = {"a": (0, 4, 2, 1, 4), "b": (4, 0, 4, 3, 0), "c": (1, 1, 0, 4, 4)}
    for step in range(5):
        present = ["a", "c"] if step == 2 else ["b", "a", "c"]
        drafts, probabilities = drafter.draft([Row(name, numpy.array(tokens[name])) for name in present], 4)  # type: ignore[arg-type]
        assert probabilities is None
        for name in present:
            assert drafts[name] == continued(model, tokens[name], 4)
            tokens[name] += [*drafts[name][: accepted[name][step]], (step * 31 + 7) % 256]


@torch.inference_mode()
def test_prompts_longer_than_a_chunk(drafter: Drafter, model: PreTrainedModel) -> None:
    tokens = ids(1, 2 * CHUNK + 40)[0].tolist()
    drafts, _ = drafter.draft([Row("long", tokens), Row("short", tokens[:5])], 3)
    assert drafts == {"long": continued(model, tokens, 3), "short": continued(model, tokens[:5], 3)}


@torch.inference_mode()
def test_drawn_tokens_follow_the_probabilities_that_are_handed_over(drafter: Drafter, model: PreTrainedModel) -> None:
    torch.manual_seed(0)
    tokens = ids(1, 8)[0].tolist()
    rows = [Row(f"r{i}", tokens, 0.7) for i in range(400)] + [Row("greedy", tokens)]
    drafts, probabilities = drafter.draft(rows, 2)
    assert probabilities is not None
    assert probabilities.shape == (401, 2, LLAMA.config().vocab_size)
    expected = torch.softmax(model(torch.tensor([tokens])).logits[0, -1] / 0.7, -1)
    torch.testing.assert_close(probabilities[0, 0], expected, atol=1e-5, rtol=1e-4)
    second = drafts["r5"]
    after = torch.softmax(model(torch.tensor([[*tokens, second[0]]])).logits[0, -1] / 0.7, -1)
    torch.testing.assert_close(probabilities[5, 1], after, atol=1e-5, rtol=1e-4)
    counts = torch.bincount(torch.tensor([drafts[f"r{i}"][0] for i in range(400)]), minlength=len(expected)).float()
    likely = expected > 5 / 400
    observed = torch.cat([counts[likely], counts[~likely].sum()[None]])
    wanted = 400 * torch.cat([expected[likely], expected[~likely].sum()[None]])
    statistic = float(((observed - wanted) ** 2 / wanted).sum())
    assert len(wanted) > 5
    assert statistic < critical_value(1e-4, len(wanted) - 1)
    assert drafts["greedy"] == continued(model, tokens, 2)


@torch.inference_mode()
def test_a_seeded_request_is_drafted_alike_whoever_is_beside_it(folder: Path) -> None:
    def seeded(*others: Row) -> list[int]:
        row = Row("seeded", ids(1, 8)[0].tolist(), 1.0, torch.Generator().manual_seed(3))
        return Drafter(DraftNetwork(folder)).draft([*others, row], 5)[0]["seeded"]

    alone = seeded()
    torch.manual_seed(99)
    assert seeded(Row("other", [5, 6, 7], 1.0)) == alone


@torch.inference_mode()
def test_a_full_cache_leaves_requests_without_drafts_until_there_is_room(folder: Path, model: PreTrainedModel) -> None:
    network = DraftNetwork(folder)
    small = Drafter(network, cache_bytes=64 * network.bytes_per_position)
    first, second, long = [ids(1, n, s)[0].tolist() for n, s in ((20, 1), (20, 2), (100, 3))]
    assert set(small.draft([Row("first", first), Row("second", second)], 3)[0]) == {"first", "second"}
    drafts, _ = small.draft([Row("first", first), Row("second", second), Row("third", first), Row("long", long)], 3)
    assert set(drafts) == {"first", "second"}
    small.forget_all_but(["second", "third"])
    drafts, _ = small.draft([Row("second", second), Row("third", first)], 3)
    assert drafts == {"second": continued(model, second, 3), "third": continued(model, first, 3)}


def request(answer: list[int], **sampling: Any) -> SimpleNamespace:
    """The model runner's record of a request."""
    params = {
        "max_tokens": None, "min_tokens": 0, "eos_token_id": 0, "stop_token_ids": [9], "structured_outputs": None, **sampling,
    }  # fmt: skip
    return SimpleNamespace(output_token_ids=answer, sampling_params=SimpleNamespace(**params))


@pytest.mark.parametrize(
    ("answer", "sampling", "expected"),
    [
        ([5, 6], {}, (2, ENDLESS)),
        ([5, 6], {"max_tokens": 8}, (2, 6)),
        ([5, 6], {"max_tokens": 2}, (2, 0)),
        ([5, 0], {"max_tokens": 8}, (2, 0)),
        ([5, 9], {"max_tokens": 8}, (2, 0)),
        ([5, 0], {"max_tokens": 8, "eos_token_id": None, "stop_token_ids": None}, (2, 6)),
        ([], {"max_tokens": 8}, (0, 8)),
        ([5, 6], {"max_tokens": 8, "min_tokens": 5}, (2, 3)),
        ([5, 6], {"min_tokens": 3}, (2, 1)),
        ([5, 6], {"max_tokens": 3, "min_tokens": 3}, (2, 1)),
        ([5, 6], {"min_tokens": 2}, (2, ENDLESS)),
    ],
)
def test_how_far_an_answer_is(answer: list[int], sampling: dict[str, Any], expected: tuple[int, int]) -> None:
    assert progress(request(answer, **sampling)) == expected


@torch.inference_mode()
def test_no_more_is_drafted_than_an_answer_can_take(drafter: Drafter, model: PreTrainedModel) -> None:
    tokens = ids(1, 12)[0].tolist()
    rows = [Row(f"{left} left", tokens, left=left) for left in (0, 1, 2, 4, 50)]
    drafts, _ = drafter.draft(rows, 5)
    assert {name: len(draft) for name, draft in drafts.items()} == {"2 left": 1, "4 left": 3, "50 left": 5}
    assert all(draft == continued(model, tokens, len(draft)) for draft in drafts.values())
    drawn, probabilities = drafter.draft([Row("short", tokens, 1.0, left=3), Row("ended", tokens, 1.0, left=0)], 5)
    assert probabilities is not None
    assert (len(drawn["short"]), list(drawn), probabilities.shape[:2]) == (2, ["short"], (1, 2))


@torch.inference_mode()
def test_an_answer_that_was_not_followed_is_joined_only_while_enough_is_left(drafter: Drafter) -> None:
    tokens = ids(1, 40)[0].tolist()
    late = [Row(f"late, {left} left", tokens, answered=20, left=left) for left in (39, 40, ENDLESS)]
    drafts, _ = drafter.draft([Row("new", tokens, left=10), *late], 2)
    assert list(drafts) == ["new", "late, 40 left", f"late, {ENDLESS} left"]
    longer = tokens + ids(1, 4, 7)[0].tolist()
    drafts, _ = drafter.draft([Row("new", longer, answered=5, left=6)], 2)
    assert list(drafts) == ["new"], "it has been followed: what is new is soon read"


@torch.inference_mode()
def test_more_is_drafted_again_only_after_calm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.in_engine.direct_drafting.attach", lambda: None)
    proposer = DirectProposer(SimpleNamespace(additional_config={"understudy_draft": str(folder)}))
    proposer.load_model(None)
    tokens = numpy.array(ids(1, 16)[0])[None]
    batch = SimpleNamespace(req_ids=["a"], token_ids_cpu=tokens, num_tokens_no_spec=numpy.array([10]))
    runner = SimpleNamespace(input_batch=batch, requests={"a": request([1])})
    greedy = SimpleNamespace(all_greedy=True, temperature=None, generators={})
    asked = [4, 0, *[4] * CALM, 2, 4]
    found = [len(proposer.propose_for(runner, [[1]], greedy, count)[0]) for count in asked]
    assert found == [4, *[0] * CALM, 4, 2, 2]
    assert len(proposer.propose_for(runner, [[1]], greedy, 0)[0]) == 0
    batch.req_ids, runner.requests = ["b"], {"b": request([1])}
    assert len(proposer.propose_for(runner, [[1]], greedy, 4)[0]) == 0, "it comes after a crowd, and more may follow"
    assert len(proposer.propose_for(runner, [[1]], greedy, 4)[0]) == 4, "nobody is left of the requests before"
    batch.req_ids, runner.requests = ["c"], {"c": request([1])}
    assert len(proposer.propose_for(runner, [[1]], greedy, 4)[0]) == 4, "there was no crowd before this one"


@torch.inference_mode()
def test_the_proposer_hands_probabilities_to_the_model_runner(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config: Any = SimpleNamespace(additional_config={"understudy_draft": str(folder)})
    monkeypatch.setattr("server.in_engine.direct_drafting.attach", lambda: None)  # which needs vLLM
    proposer = DirectProposer(config)
    proposer.load_model(None)
    tokens = numpy.zeros((3, 64), dtype=numpy.int32)
    for row, length in enumerate((10, 20, 5)):
        tokens[row, :length] = ids(1, length, row)[0]
    batch = SimpleNamespace(req_ids=["a", "b", "c"], token_ids_cpu=tokens, num_tokens_no_spec=numpy.array([10, 20, 5]))
    requests = {name: request([1, 2]) for name in batch.req_ids}
    runner = SimpleNamespace(input_batch=batch, requests=requests, _draft_probs=None, _draft_prob_req_ids=None)
    greedy = SimpleNamespace(all_greedy=True, temperature=None, generators={})
    drafts = proposer.propose_for(runner, [[1], [], [2, 3]], greedy, 3)
    rows = [Row("a", tokens[0, :10].tolist()), Row("c", tokens[2, :5].tolist())]
    alone = Drafter(DraftNetwork(folder, eight_bit=True)).draft(rows, 3)[0]
    assert drafts == [alone["a"], [], alone["c"]]
    assert runner._draft_probs is None
    mixed = SimpleNamespace(all_greedy=False, temperature=torch.tensor([0.0, 1.0, 0.5]), generators={})
    drafts = proposer.propose_for(runner, [[], [1], [2]], mixed, 2)
    assert [len(draft) for draft in drafts] == [0, 2, 2]
    assert runner._draft_prob_req_ids == ["b", "c"]
    assert runner._draft_probs.shape[:2] == (2, 2)
    assert proposer.propose_for(runner, [[1], [1], [2]], mixed, 0) == [[], [], []]
    assert runner._draft_probs is None


@torch.inference_mode()
def test_what_a_grammar_forces_is_proposed_greedily(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that the grammar forbids are dropped before they are judged: they must not have been drawn."""
    monkeypatch.setattr("server.in_engine.direct_drafting.attach", lambda: None)
    proposer = DirectProposer(SimpleNamespace(additional_config={"understudy_draft": str(folder)}))
    proposer.load_model(None)
    tokens = numpy.stack([numpy.array(ids(1, 10, row)[0]) for row in range(2)])
    batch = SimpleNamespace(req_ids=["a", "b"], token_ids_cpu=tokens, num_tokens_no_spec=numpy.array([10, 10]))
    requests = {"a": request([1, 2], structured_outputs=object()), "b": request([1, 2])}
    runner = SimpleNamespace(input_batch=batch, requests=requests)
    sampled = SimpleNamespace(all_greedy=False, temperature=torch.tensor([2.0, 2.0]), generators={})
    alone = Drafter(DraftNetwork(folder, eight_bit=True)).draft([Row("a", tokens[0].tolist())], 3)[0]
    for _ in range(4):
        assert proposer.propose_for(runner, [[1], [1]], sampled, 3)[0] == alone["a"]
        assert torch.equal(runner._draft_probs[0].argmax(-1), torch.tensor(alone["a"]))
        assert runner._draft_probs[0].max(-1).values.tolist() == [1.0] * 3, "certain"
        assert (runner._draft_probs[1] < 1).all()


@torch.inference_mode()
def test_answers_that_begin_together_wait_a_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a wave the first comes alone: it is drafted for. Those behind it are too, unless the batch has grown too large by then."""
    monkeypatch.setattr("server.in_engine.direct_drafting.attach", lambda: None)
    proposer = DirectProposer(SimpleNamespace(additional_config={"understudy_draft": str(folder)}))
    proposer.load_model(None)
    tokens = numpy.stack([numpy.array(ids(1, 16, row)[0]) for row in range(3)])
    batch = SimpleNamespace(req_ids=["a", "b", "c"], token_ids_cpu=tokens, num_tokens_no_spec=numpy.array([10, 10, 10]))
    greedy = SimpleNamespace(all_greedy=True, temperature=None, generators={})

    def drafted(**answered: list[int]) -> list[int]:
        runner = SimpleNamespace(
            input_batch=batch, requests={name: request(answered.get(name, [])) for name in batch.req_ids}
        )
        sampled = [[1] if name in answered else [] for name in batch.req_ids]
        return [len(draft) for draft in proposer.propose_for(runner, sampled, greedy, 3)]

    assert drafted(a=[1]) == [3, 0, 0]
    assert drafted(a=[1, 2], b=[1], c=[1]) == [3, 0, 0]
    assert drafted(a=[1, 2, 3], b=[1, 2], c=[1, 2]) == [3, 3, 3]
    assert drafted(a=[1, 2, 3], b=[1, 2], c=[1]) == [3, 3, 3], "one that begins by itself does not wait"


@torch.inference_mode()
def test_greedy_drafting_proposes_the_likeliest_tokens_of_sampled_requests_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.in_engine.direct_drafting.attach", lambda: None)
    told = {"understudy_draft": str(folder), "understudy_draft_sampling": "greedy"}
    proposer = DirectProposer(SimpleNamespace(additional_config=told))
    proposer.load_model(None)
    tokens = numpy.array(ids(1, 10)[0])[None]
    batch = SimpleNamespace(req_ids=["a"], token_ids_cpu=tokens, num_tokens_no_spec=numpy.array([10]))
    runner = SimpleNamespace(input_batch=batch, requests={"a": request([1])})
    sampled = SimpleNamespace(all_greedy=False, temperature=torch.tensor([2.0]), generators={})
    alone = Drafter(DraftNetwork(folder, eight_bit=True)).draft([Row("a", tokens[0].tolist())], 4)[0]
    for _ in range(4):
        assert proposer.propose_for(runner, [[1]], sampled, 4) == [alone["a"]]
        assert runner._draft_probs is None, "the rejection sampler takes such tokens as certain"


@pytest.mark.parametrize(
    ("drafted", "is_hybrid", "seen"),
    [({}, False, None), ({"a": [1, 2]}, False, "a draft"), ({}, True, "a draft")],
    ids=["nothing to judge", "draft tokens to judge", "a recurrent state"],
)
def test_a_step_without_draft_tokens_is_prepared_as_plain_decoding_is(
    drafted: dict[str, list[int]], is_hybrid: bool, seen: str | None
) -> None:
    runner = SimpleNamespace(speculative_config="a draft", model_config=SimpleNamespace(is_hybrid=is_hybrid))
    scheduled = SimpleNamespace(scheduled_spec_decode_tokens=drafted)
    prepare = plainly(lambda self, scheduled, *rest, **more: (self.speculative_config, scheduled, rest, more))
    assert prepare(runner, scheduled, 1, two=2) == (seen, scheduled, (1,), {"two": 2})
    assert runner.speculative_config == "a draft"


def test_an_engine_has_its_draft_again_after_an_error() -> None:
    def failing(self: Any, scheduled: Any) -> None:
        raise ValueError("no")

    runner = SimpleNamespace(speculative_config="a draft", model_config=SimpleNamespace(is_hybrid=False))
    with pytest.raises(ValueError, match="no"):
        plainly(failing)(runner, SimpleNamespace(scheduled_spec_decode_tokens={}))
    assert runner.speculative_config == "a draft"


@torch.inference_mode()
def test_a_long_request_does_not_keep_later_ones_from_being_drafted_for(folder: Path) -> None:
    network = DraftNetwork(folder)
    drafter = Drafter(network, cache_bytes=network.bytes_per_position * 1024)
    long, short = ids(1, 1000)[0], ids(1, 10)[0]
    assert drafter.draft([Row("long", long)], 4)[0].keys() == {"long"}
    drafter.forget_all_but([])
    rows = [Row(str(n), short) for n in range(8)]
    assert drafter.draft(rows, 4)[0].keys() == {row.request_id for row in rows}
