"""The one place that knows lm-evaluation-harness: local and public tasks in, its own results and each item's score out."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from evaluation.settings import EvaluateSettings
from evaluation.tasks import LocalTask, is_local, read_task
from stages.errors import InputError
from stages.hashing import value_hash
from stages.progress import Advance, log, progress

PREFERRED = ("acc_norm", "acc", "exact_match", "f1", "bleu")
"""Which of a task's metrics is its score: the first of these that it has, else its first."""
ROLLING = "bits_per_byte"
BITS_PER_NAT = 1 / math.log(2)
WINDOWS = 8
"""How many times more tokens a window of perplexity has than an answer with its question: so many fewer share a batch.

Logits of 16 whole windows do not stay in a processor's cache: 44 s instead of 15 for the reference target's 66 windows on a core.
"""


def _harness() -> Any:
    """The package, or one line on how to get it."""
    try:
        import lm_eval.api.task
        import lm_eval.evaluator
        import lm_eval.models.huggingface
        import lm_eval.tasks
    except ImportError as error:
        raise InputError(
            f"evaluate: lm-evaluation-harness cannot be imported ({error}); install it with 'make setup-evaluation'"
        ) from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    # its bars for each task's requests, which are made in no time
    lm_eval.api.task.tqdm = partial(lm_eval.api.task.tqdm, disable=True)
    return lm_eval


def _language_model(harness: Any, model: Any, tokenizer: Any, settings: EvaluateSettings) -> Any:
    """The model as the harness wants it, with our progress."""

    class Watched(harness.models.huggingface.HFLM):
        """Shows progress of each kind of request in place of the harness's bars."""

        batch_size_per_gpu: int
        num_cut = 0
        advance: Advance = staticmethod(lambda amount=1, note="": None)

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            with progress("choices", len(requests), "answers") as self.advance:
                return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            windows = sum(-(-len(self.tok_encode(request.args[0])) // self.max_length) for request in requests)
            answers_at_once = self.batch_size_per_gpu
            self.batch_size_per_gpu = max(1, answers_at_once // WINDOWS)
            try:
                with progress("perplexity", windows, "windows") as self.advance:
                    return super().loglikelihood_rolling(requests, disable_tqdm=True)
            finally:
                self.batch_size_per_gpu = answers_at_once

        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, override_bs: Any = None) -> Any:
            self.num_cut += sum(len(asked) + len(answer) > self.max_length + 1 for _, asked, answer in requests)
            return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)

        def tok_batch_encode(
            self,
            strings: list[str],
            padding_side: str = "left",
            left_truncate_len: int | None = None,
            truncation: bool = False,
        ) -> Any:
            if left_truncate_len is not None:
                self.num_cut += sum(len(self.tok_encode(text)) > left_truncate_len for text in strings)
            return super().tok_batch_encode(strings, padding_side, left_truncate_len, truncation)

        def _model_call(self, inps: Any, attn_mask: Any = None, labels: Any = None) -> Any:
            self.advance(len(inps))
            return super()._model_call(inps, attn_mask, labels)

    length = min(settings.max_length, getattr(model.config, "max_position_embeddings", settings.max_length))
    return Watched(
        pretrained=model, backend="causal", tokenizer=tokenizer, max_length=length, batch_size=settings.batch_size
    )


def local_task(harness: Any, task: LocalTask, tokenizer: Any) -> Any:
    """A local task as an object of the harness."""
    from datasets import Dataset
    from datasets.table import InMemoryTable
    from lm_eval.api.task import ConfigurableTask

    def items(**_: Any) -> Any:
        table = InMemoryTable.from_pylist(list(task.items))
        return {
            task.config["test_split"]: Dataset(table, fingerprint=task.sha256[:16])
        }  # its own pickles all of pyarrow

    config = {**task.config, "custom_dataset": items}
    if task.is_chat and tokenizer.chat_template:

        def asked(doc: dict[str, Any]) -> Any:
            message = [{"role": "user", "content": doc[task.config["doc_to_text"]]}]
            return tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)

        config["doc_to_text"] = asked
    return ConfigurableTask(config=config)


def _public_tasks(harness: Any, names: Sequence[str]) -> Any:
    """Public tasks by name, with their groups.

    Raises:
        InputError: an unknown name, with the nearest known one; data that cannot be had.
    """
    manager = harness.tasks.TaskManager()
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see 'lm_eval ls tasks' for the harness's"
            raise InputError(f"tasks: {name!r} is neither a local task nor one of the harness; {hint}")
    try:
        return manager.load(list(names))
    except Exception as error:  # whatever the network, the hub and a data set's builder raise
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"tasks: the data of {', '.join(names)} cannot be loaded ({line[:200]}); public tasks need a hub that can be "
            "reached (HF_ENDPOINT, HF_HUB_OFFLINE), local ones do not"
        ) from error


def load_tasks(harness: Any, tokenizer: Any, settings: EvaluateSettings) -> tuple[Any, list[LocalTask]]:
    """All tasks in the form that the harness evaluates, and the local ones among them."""
    folder = settings.task_folder
    local = [read_task(n, folder, settings.limit, settings.seed) for n in settings.tasks if is_local(n, folder)]
    public = [name for name in settings.tasks if not is_local(name, folder)]
    loaded = _public_tasks(harness, public) if public else {"tasks": {}, "groups": {}, "group_map": {}}
    for task in local:
        made = local_task(harness, task, tokenizer)
        loaded["tasks"][made.task_name] = made
    for name, task in loaded["tasks"].items():
        own = task.get_config("num_fewshot")
        asked = settings.num_fewshot if name not in {t.config["task"] for t in local} and own != 0 else None
        task.set_config(key="num_fewshot", value=asked if asked is not None else own or 0)
        task.set_fewshot_seed(seed=settings.seed)
    return loaded, local


def groups_of(loaded: Any, names: Sequence[str]) -> dict[str, str]:
    """By task, the group that was asked for and that it belongs to."""
    groups = loaded["groups"]
    return {task.task_name: name for name in names if name in groups for task in groups[name].get_all_tasks()}


def run(
    model: Any, tokenizer: Any, settings: EvaluateSettings, source: Path
) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """The harness's results as it writes them, its samples by task, and ``groups_of`` the tasks.

    Raises:
        InputError: the harness is not installed; tasks that do not exist or cannot be had.
    """
    harness = _harness()
    loaded, local = load_tasks(harness, tokenizer, settings)
    lm = _language_model(harness, model, tokenizer, settings)
    try:
        results = harness.evaluator.evaluate(
            lm=lm, task_dict=loaded, limit=settings.limit, bootstrap_iters=settings.bootstrap, log_samples=True
        )
    except AssertionError as error:  # the harness's only word on an answer that does not fit
        raise InputError(
            f"evaluate: an answer is longer than the {lm.max_length} tokens that the model takes here; raise max_length, or "
            "leave the task out"
        ) from error
    if lm.num_cut:
        log(
            f"evaluate: {lm.num_cut:,} requests were longer than {lm.max_length} tokens and lost their beginning; raise max_length"
        )
    samples = results.pop("samples")
    for task in local:
        results["configs"][task.config["task"]] = {**task.config, "num_fewshot": 0}
    results["config"] = {
        "model": "hf", "model_args": f"pretrained={source.name},dtype={settings.dtype},max_length={settings.max_length}",
        "model_num_parameters": model.num_parameters(), "batch_size": settings.batch_size, "limit": settings.limit,
        "bootstrap_iters": settings.bootstrap, "fewshot_seed": settings.seed, "num_requests_cut": lm.num_cut,
    }  # fmt: skip
    return results, samples, groups_of(loaded, settings.tasks)


def headline(sample: dict[str, Any]) -> str | None:
    """The metric that is a task's score; None where it has none that is a number for each item (BLEU and F1 of all together)."""
    metrics = sample["metrics"]
    if ROLLING in metrics:
        return ROLLING
    numbers = [name for name in metrics if isinstance(sample.get(name), int | float)]
    return next((name for name in PREFERRED if name in numbers), numbers[0] if numbers else None)


def _check_likelihoods(task: str, samples: Sequence[dict[str, Any]]) -> None:
    """Refuses a model that computes no numbers: the likeliest of choices that are all NaN would be the first, and believed."""
    for sample in samples:
        found = [part[0] for part in sample["filtered_resps"] if isinstance(part, tuple | list) and part]
        if any(isinstance(value, float) and math.isnan(value) for value in found):
            raise InputError(
                f"evaluate: the model's log-likelihoods of {task!r}, item {sample['doc_id']}, are NaN; a model that was broken in "
                "training has no scores, and one that is too large for float16 needs --set dtype=float32"
            )


def items_of(task: str, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A task's samples as arguments of ``scores.scored``: metric, chance, each item's score, and a hash of what was asked.

    Raises:
        InputError: no score for each item, or one that is no number.
    """
    one_filter = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    metric = headline(one_filter[0])
    if metric is None:
        names = ", ".join(one_filter[0]["metrics"])
        raise InputError(f"tasks: {task!r} has scores of all its items together only ({names}); leave it out")
    _check_likelihoods(task, one_filter)
    asked = value_hash([[sample[name] for name in ("doc_hash", "prompt_hash", "target_hash")] for sample in one_filter])
    values = [sample[metric] for sample in one_filter]
    if metric == ROLLING:
        if not all(math.isfinite(likelihood) for likelihood, _ in values):
            raise InputError(f"evaluate: the model's log-likelihood of a text of {task!r} is no number")
        bits = [-likelihood * BITS_PER_NAT for likelihood, _ in values]
        return {"metric": metric, "items": bits, "weights": [float(size) for _, size in values], "items_sha256": asked}
    return {
        "metric": metric, "items": [float(value) for value in values], "items_sha256": asked,
        "chance": sum(map(_chance, one_filter)) / len(one_filter),
    }  # fmt: skip


def _chance(sample: dict[str, Any]) -> float:
    """The chance of a guess at one item: one of its choices, or nothing where the answer is free."""
    choices = len(sample["filtered_resps"])
    return 1 / choices if choices > 1 else 0.0
