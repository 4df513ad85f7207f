"""Ways of decoding that are compared (plain, n-gram, a draft), and engines for several of them side by side."""

from __future__ import annotations

import importlib.util
import json
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drafts.parallel import CONFIG_KEY
from server.asking import NO_ANSWER, open_directly
from server.background import background_gateway
from server.engine import EngineSettings, LocalEngine, forks_engines
from server.engine_command import cpu_build_installed, in_process_by_default
from server.launching import Launch, fork_server, launch_single
from stages import provenance
from stages.errors import EngineError, InputError
from stages.folders import read_json
from stages.progress import log

MODEL = "target"
NGRAM = {"method": "ngram", "prompt_lookup_max": 3, "num_speculative_tokens": 4}
SUFFIX: dict[str, Any] = {"method": "suffix", "num_speculative_tokens": 8}
"""Suffix decoding (arXiv 2411.04975); needs the package arctic-inference. Its cache is emptied before each condition."""


def suffix_installed() -> bool:
    """Whether this environment has what vLLM's suffix decoding needs."""
    return importlib.util.find_spec("arctic_inference") is not None


def wants_suffix(asked: bool | None) -> bool:
    """Whether suffix decoding is measured: as asked, else where it is installed.

    Raises:
        InputError: it is asked for and not installed.
    """
    if asked and not suffix_installed():
        raise InputError(
            "suffix decoding is asked for, but its package, arctic-inference, is not installed; run 'make setup-suffix' or "
            "leave it out"
        )
    return suffix_installed() if asked is None else asked


def settle_s() -> float:
    """Pause that engines side by side need between turns, in seconds.

    Where an engine on a CPU has a worker process, that spins for a second after its last step, on a core the next one needs.
    """
    return 1.2 if cpu_build_installed() and not in_process_by_default() else 0.0


@dataclass(frozen=True)
class Method:
    """One way of decoding: its name in tables and what the engine is started with.

    Attributes:
        speculative_config: vLLM's own setting, ``model`` included; None is plain decoding.
        model: a checkpoint that is served in the target's place, e.g. what came of pruning it.
        engine_args: further arguments of its engine's command line.
    """

    name: str
    speculative_config: dict[str, Any] | None = None
    model: Path | None = None
    engine_args: tuple[str, ...] = ()

    @property
    def learns(self) -> bool:
        """Whether it remembers the answers to earlier requests, so that a prompt that comes again is easier."""
        return self.speculative_config is not None and self.speculative_config["method"] == "suffix"


def own_name(speculative_config: dict[str, Any] | None) -> str:
    """What a pair's own method is called in tables: ``draft``, or ``suffix`` where the pair decodes by suffixes."""
    return "suffix" if speculative_config and speculative_config["method"] == "suffix" else "draft"


def draft_method(draft: Path, num_speculative_tokens: int, name: str = "draft", **options: Any) -> Method:
    """Decoding with a draft model; probabilistic drafting, which greedy requests are not affected by."""
    config = {
        "method": "draft_model", "model": str(draft), "num_speculative_tokens": num_speculative_tokens,
        "draft_sample_method": "probabilistic", **options,
    }  # fmt: skip
    return Method(name, config)


def proposes_in_parallel(draft: Path) -> bool:
    """Whether a draft was trained to propose several tokens in one pass; of a folder that holds none, the engine complains."""
    config = draft / "config.json"
    return config.is_file() and CONFIG_KEY in read_json(config, "run 'understudy recover' again")


def trained_in_one_pass(draft: Path) -> int | None:
    """How many tokens a draft was trained to propose in one pass, as ``recover`` wrote it down; None where that is not known."""
    found = ((provenance.read(draft) or {}).get("settings") or {}).get("parallel_tokens")
    return int(found) if found else None


def verify_method(num_speculative_tokens: int) -> Method:
    """Checking draft tokens that cost nothing to propose and are hardly ever right."""
    proposer = "server.in_engine.free_drafting.FreeProposer"
    return Method(
        "verify", {"method": "custom_class", "model": proposer, "num_speculative_tokens": num_speculative_tokens}
    )


@dataclass(frozen=True)
class EngineOptions:
    """What all engines of one comparison have in common; fields as in ``EngineSettings``."""

    max_model_len: int
    max_num_seqs: int
    enforce_eager: bool | None = None
    extra_args: tuple[str, ...] = ()


@dataclass(frozen=True)
class Serving:
    """Methods that are being served.

    Attributes:
        urls: the gateway's base address by method.
        learning: the engine's base address by method, for those that remember answers.
    """

    urls: dict[str, str]
    learning: dict[str, str]

    def forget(self) -> None:
        """Makes the methods that remember answers forget them.

        Raises:
            EngineError: an engine did not.
        """
        for name, url in self.learning.items():
            body = json.dumps({"method": "forget_suffixes"}).encode()
            request = urllib.request.Request(f"{url}/collective_rpc", body, {"Content-Type": "application/json"})
            try:
                with open_directly(request, timeout_s=30):
                    pass
            except NO_ANSWER as error:
                raise EngineError(
                    f"the engine of {name!r} did not empty its cache of answers ({error}); see its log in engine-logs"
                ) from error


def drafted_directly(method: Method, options: EngineOptions) -> bool:
    """Whether our own proposer would run a method's draft in such an engine, and not the engine's own."""
    settings = EngineSettings(
        model=Path(), log_file=Path(), speculative_config=method.speculative_config,
        extra_args=(*options.extra_args, *method.engine_args),
    )  # fmt: skip
    return settings.drafts_directly


FORGETTING = {
    "extra_args": ("--worker-extension-cls", "server.in_engine.suffix_cache.SuffixCacheExtension"),
    "environment": {"VLLM_SERVER_DEV_MODE": "1"},
}
"""What an engine is started with so that it can be made to forget; it listens on loopback, while methods are measured."""


def _engine(target: Path, method: Method, folder: Path, options: EngineOptions, launch: Launch) -> LocalEngine:
    more: dict[str, Any] = FORGETTING if method.learns else {}
    settings = EngineSettings(
        model=method.model or target, served_model_name=MODEL, speculative_config=method.speculative_config,
        max_model_len=options.max_model_len, max_num_seqs=options.max_num_seqs, enforce_eager=options.enforce_eager,
        log_file=folder / f"engine-{method.name}.log", environment=more.get("environment", {}),
        extra_args=(
            "--no-enable-prefix-caching", *options.extra_args, *method.engine_args, *more.get("extra_args", ())
        ),
    )  # fmt: skip
    return LocalEngine(settings, launch=launch)


@contextmanager
def serving(target: Path, methods: Sequence[Method], folder: Path, options: EngineOptions) -> Iterator[Serving]:
    """Starts one engine and one gateway for each method.

    Engines start side by side, on a CPU with few cores out of one process (most of a start is imports) and, where they compile,
    after the first one, which does it for all; prefix caching is off, so that a repeated prompt costs what a first one does.
    """
    log(f"starting engines: {', '.join(method.name for method in methods)}")
    with ExitStack() as stack:
        forked = len(methods) > 1 and forks_engines()
        launch = stack.enter_context(fork_server(folder / "engines.log")) if forked else launch_single()
        engines = {}
        for method in methods:
            engines[method.name] = engine = _engine(target, method, folder, options, launch)
            stack.callback(engine.stop)
            engine.start()
            if len(engines) == 1 and engine.settings.on_cpu and engine.settings.compiles:
                engine.wait_ready()  # the others find the target compiled
        for engine in engines.values():
            engine.wait_ready()
        speculating = {method.name for method in methods if method.speculative_config}
        urls = {
            name: stack.enter_context(background_gateway(engine.url, MODEL, name if name in speculating else None))
            for name, engine in engines.items()
        }
        try:
            yield Serving(urls, {method.name: engines[method.name].url for method in methods if method.learns})
        except EngineError:  # of an answer that did not come; where an engine has ended, its own last words say more
            for engine in engines.values():
                engine.check_alive("while it was measured")
            raise
