"""The command ``understudy``: one verb per stage, each a few lines that parse, call and print."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from stages.errors import InputError, UnderstudyError
from stages.interruption import interrupt_on_both
from stages.settings import Settings, SettingsType, validate

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""Make a small draft out of a language model, prove what it gains, and serve both.

    target + prompts → **prune** → **distill** → **recover** → **measure** → **choose** → **serve**

    Start with `understudy build recipes/reference.yaml`, then `understudy serve build/reference/pair`.
    Every stage reads folders and writes a new one; an interrupted build resumes where it stopped.

    Exit codes: 0 done, 2 bad input, 3 engine failed, 4 storage failed, 5 a check said no, 130 interrupted.
    """,
)

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended, as shells count it."""

SetOption = Annotated[
    list[str], typer.Option("--set", help="key=value of this stage's settings (YAML value); repeat for more")
]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML file with this stage's settings")]
OutOption = Annotated[Path, typer.Option("--out", help="folder to write; replaced whole when the stage succeeds")]


def settings_from(cls: type[SettingsType], config: Path | None, pairs: list[str], **given: Any) -> SettingsType:
    """Settings from a YAML file, then options ``given`` that are not None, then ``key=value`` pairs; the later wins."""
    return validate(cls, values_from(config, pairs, **given), str(config) if config else "--set")


def values_from(config: Path | None, pairs: list[str], **given: Any) -> dict[str, Any]:
    """What settings are made from, not checked yet; arguments as for ``settings_from``."""
    import yaml

    from stages.settings import read_mapping

    values = read_mapping(config) if config else {}
    values |= {key: value for key, value in given.items() if value is not None}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign:
            raise InputError(f"--set {pair}: must be key=value, e.g. --set keep=2")
        try:
            values[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"--set {pair}: the value is not valid YAML") from error
    return values


@app.command()
def build(
    recipe: Annotated[Path, typer.Argument(help="recipe, e.g. recipes/reference.yaml")],
    out: Annotated[Path | None, typer.Option(help="write here instead of the recipe's 'out'")] = None,
    target: Annotated[Path | None, typer.Option(help="the target's folder instead of the recipe's")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan with sizes and estimated times")] = False,
) -> None:
    """Walk all stages of a recipe: from a target to a measured pair, ready for `serve`.

    Run it again after an interruption or a changed setting: it starts at the first stage that is not current.
    """
    from server.engine import engines_at_hand
    from stages.settings import read_mapping

    folder = out or Path(str(read_mapping(recipe).get("out", "")))
    finished = (folder / "pair").is_dir()
    with nullcontext() if dry_run or finished else engines_at_hand(folder / "engine-logs" / "engines.log"):
        from drafts.building import build, check_recipe, read_recipe

        resolved = read_recipe(recipe)
        given = {"out": out, "target": target}
        resolved = resolved.model_copy(update={key: value for key, value in given.items() if value})
        if dry_run:
            check_recipe(resolved)
            _print_estimate(resolved)
            return
        pair = build(resolved)
    print(f"{pair}: serve it with 'understudy serve {pair}'")


def _print_estimate(recipe: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    from drafts.estimating import estimate, flops_per_second

    target, draft, lines = estimate(recipe, flops_per_second())
    table = Table(title=f"{recipe.name}: {recipe.target} → {recipe.out}")
    for head in ("stage", "what", "about"):
        table.add_column(head)
    for line in lines:
        table.add_row(line.stage, line.what, "–" if line.seconds is None else f"{line.seconds:,.0f} s")
    table.add_row("", f"target: {target.total / 1e6:,.1f} M parameters, {target.bytes() / 2**20:,.0f} MiB in bf16", "")
    table.add_row("", f"weights read per token, draft / target: {draft.work / target.work:.3f}", "")
    table.add_row(
        "", "total (rough: from sizes and this machine's matrix speed)", f"{sum(x.seconds or 0 for x in lines):,.0f} s"
    )
    Console().print(table)


@app.command()
def score(
    target: Annotated[Path, typer.Argument(help="folder of the target's checkpoint")],
    calibration: Annotated[list[Path], typer.Argument(help="calibration text: JSONL prompts or plain text")],
    out: OutOption,
    config: ConfigOption = None,
    set_: SetOption = [],  # noqa: B006
) -> None:
    """Score the target's layers on calibration text (angular distance, Block Influence, greedy KL)."""
    from pruning.prune import score
    from pruning.settings import ScoreSettings

    score(target, calibration, out, settings_from(ScoreSettings, config, set_))
    print(out)


@app.command()
def prune(
    target: Annotated[Path, typer.Argument(help="folder of the target's checkpoint")],
    out: OutOption,
    method: Annotated[
        str | None,
        typer.Option(
            help="layers go: first_and_last, first, evenly_spaced, explicit, or by scores angular, block_influence, greedy_kl "
            "(depth: angular where there is calibration text or --scores, else first_and_last); FFNs become narrower: cfsp, "
            "magnitude, wanda_sp, flap; masks over heads and neurons: nuteprune"
        ),
    ] = None,
    scores: Annotated[Path | None, typer.Option(help="folder that 'score' wrote")] = None,
    plan: Annotated[Path | None, typer.Option(help="carry out this plan.json instead of deciding anew")] = None,
    config: ConfigOption = None,
    set_: SetOption = [],  # noqa: B006
) -> None:
    """Remove layers or narrow them: decide what stays (or replay a plan) and write the pruned checkpoint."""
    from pruning.nuteprune.settings import NutePruneSettings
    from pruning.nuteprune.stage import prune_masks
    from pruning.prune import prune, prune_by_plan
    from pruning.prune_width import prune_width
    from pruning.settings import DEPTH, PRUNE_SETTINGS, PruneSettings, WidthSettings, read_prune_settings

    if plan is not None:
        if set_ or config or scores or method:
            raise InputError("--plan already says what stays: leave out --method, --set, --config and --scores")
        print(f"{out}: {prune_by_plan(target, plan, out).described}")
        return
    named = values_from(config, []).get("method")
    kept = (
        method == DEPTH and PRUNE_SETTINGS.get(str(named)) is PruneSettings
    )  # the file says which way to remove layers
    values = values_from(config, set_, method=None if kept else method)
    settings = read_prune_settings(values, str(config) if config else "--set", scored=scores is not None)
    if isinstance(settings, WidthSettings | NutePruneSettings):
        if scores:
            raise InputError(f"--scores are of layers; method {settings.method!r} makes its own: leave them out")
        narrow = (
            prune_width(target, out, settings)
            if isinstance(settings, WidthSettings)
            else prune_masks(target, out, settings)
        )
        print(f"{out}: {narrow.described}")
        return
    assert isinstance(settings, PruneSettings)
    print(f"{out}: {prune(target, out, settings, scores).described}")


@app.command()
def distill(
    target: Annotated[Path, typer.Argument(help="folder of the target's checkpoint")],
    prompts: Annotated[Path, typer.Argument(help="JSONL of training prompts")],
    out: OutOption,
    mode: Annotated[
        str | None,
        typer.Option(
            help="all in one mode: direct, rewrite (of the prompts' references) or reference; else the 'mixture'"
        ),
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = [],  # noqa: B006
) -> None:
    """Let the target answer the training prompts: the data its draft learns from."""
    from drafts.distilling import DistillSettings, distill

    mixture = {mode: 1.0} if mode else None
    distill(target, prompts, out, settings_from(DistillSettings, config, set_, mixture=mixture))
    print(out)


@app.command()
def recover(
    target: Annotated[Path, typer.Argument(help="folder of the target's checkpoint")],
    pruned: Annotated[Path, typer.Argument(help="folder that 'prune' wrote")],
    data: Annotated[Path, typer.Argument(help="folder that 'distill' wrote")],
    out: OutOption,
    config: ConfigOption = None,
    set_: SetOption = [],  # noqa: B006
    processes: Annotated[
        int, typer.Option(min=1, help="how many train it side by side, each on a GPU of its own (accelerate launch)")
    ] = 1,
) -> None:
    """Train the pruned model on the target's own answers until its budget of tokens or seconds is used up."""
    from drafts.processes import world
    from drafts.recovery import recover
    from drafts.training import RecoverSettings

    recover(target, pruned, data, out, settings_from(RecoverSettings, config, set_), processes)
    if world().is_main_process:
        print(out)


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="YAML file: a recipe and the levers to vary, e.g. recipes/levers.yaml")],
    tokens: Annotated[int, typer.Option(min=1, help="draft tokens that the printed acceptance length is for")] = 4,
) -> None:
    """Train and judge variants of a recipe side by side: layers, data, losses, merging."""
    from rich.console import Console

    from drafts.sweeping import FILE, read_sweep, render, run_sweep

    sweep, _ = read_sweep(file)
    rows = run_sweep(file)
    render(rows, min(tokens, sweep.judge.num_speculative_tokens), Console())
    print(sweep.out / FILE)


@app.command()
def merge(
    target: Annotated[Path, typer.Argument(help="folder of the target's checkpoint")],
    first: Annotated[Path, typer.Argument(help="a draft that 'recover' wrote")],
    second: Annotated[Path, typer.Argument(help="another recovery of the same pruned model, e.g. on other data")],
    out: OutOption,
    config: ConfigOption = None,
    set_: SetOption = [],  # noqa: B006
) -> None:
    """Merge two recoveries of the same pruned model, tensor by tensor on the arc between them."""
    from drafts.merging import MergeSettings, merge

    merge(target, first, second, out, settings_from(MergeSettings, config, set_))
    print(out)


@app.command()
def judge(
    target: Annotated[Path, typer.Argument(help="folder of the target's checkpoint")],
    draft: Annotated[Path, typer.Argument(help="folder of the draft")],
    data: Annotated[Path, typer.Argument(help="folder that 'distill' wrote, of prompts that training did not see")],
    out: Annotated[Path | None, typer.Option(help="JSON file to write")] = None,
    config: ConfigOption = None,
    set_: SetOption = [],  # noqa: B006
) -> None:
    """Judge a draft without an engine: overlap, agreement and acceptance lengths on the target's own answers."""
    from drafts.judging import JudgeSettings, judge

    judge(target, draft, data, out, settings_from(JudgeSettings, config, set_))


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="folder of a checkpoint: a target, or what came of one")],
    out: Annotated[Path, typer.Option(help="JSON file to write: the harness's results, with ours under 'understudy'")],
    against: Annotated[Path | None, typer.Option(help="the target's result, to say how much of it is kept")] = None,
    config: ConfigOption = None,
    set_: SetOption = [],  # noqa: B006
) -> None:
    """Evaluate a model with lm-evaluation-harness: perplexity, next lines, docstrings, signatures, chat answers."""
    from rich.console import Console

    from evaluation.evaluating import evaluate
    from evaluation.settings import EvaluateSettings
    from evaluation.table import render

    render(evaluate(model, out, settings_from(EvaluateSettings, config, set_), against), Console())
    print(out)


@app.command()
def measure(
    target: Annotated[Path, typer.Argument(help="folder of the target's checkpoint")],
    draft: Annotated[Path, typer.Argument(help="folder of the draft")],
    prompts: Annotated[Path, typer.Argument(help="JSONL of prompts that training did not see")],
    out: OutOption,
    config: ConfigOption = None,
    set_: SetOption = [],  # noqa: B006
) -> None:
    """Measure step costs and acceptance of a draft in the real engine on this machine, and suffix decoding where installed."""
    from drafts.measuring import MeasureSettings, measure

    measure(target, draft, prompts, out, settings_from(MeasureSettings, config, set_))
    print(out)


@app.command()
def choose(
    target: Annotated[Path, typer.Argument(help="folder of the target's checkpoint")],
    draft: Annotated[Path, typer.Argument(help="folder of the draft")],
    measured: Annotated[Path, typer.Argument(help="folder that 'measure' wrote")],
    out: OutOption,
    name: Annotated[str, typer.Option(help="name that clients call the model by")] = "target",
    max_model_len: Annotated[int, typer.Option(min=16, help="longest prompt plus answer in tokens")] = 512,
    config: ConfigOption = None,
    set_: SetOption = [],  # noqa: B006
) -> None:
    """Decide how many tokens the draft proposes, or that suffix decoding is better, or that nothing pays; write the pair."""
    from drafts.choice import ChooseSettings
    from drafts.pairing import choose_pair

    choose_pair(target, draft, measured, out, settings_from(ChooseSettings, config, set_), name, max_model_len)
    print(out)


@app.command()
def compare(
    pair: Annotated[Path, typer.Argument(help="folder that 'choose' wrote")],
    prompts: Annotated[Path, typer.Argument(help="JSONL of held-out prompts")],
    out: Annotated[Path, typer.Option(help="JSON file to write; CSV, HTML and PNG go beside it")],
    training_prompts: Annotated[
        Path | None, typer.Option(help="refuse prompts that stand in this file, besides those on a draft's own list")
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = [],  # noqa: B006
) -> None:
    """Compare plain decoding, n-gram look-up and the draft on your prompts, through the gateway, in one run."""
    from rich.console import Console

    from server.engine import engines_at_hand

    with engines_at_hand(out.parent / "engine-logs" / "engines.log"):
        from drafts.comparing import CompareSettings, compare
        from drafts.report import drifts
        from drafts.table import render

        rows = compare(pair, prompts, out, settings_from(CompareSettings, config, set_), training_prompts)
    render(rows, Console())
    for line in drifts(rows):
        print(f"more than 10 % from the prediction: {line}")
    print(f"{out}, .csv, .png, and the report: {out.with_suffix('.html')}")


@app.command()
def verify(
    pair: Annotated[Path, typer.Argument(help="folder that 'choose' wrote")],
    prompts: Annotated[Path, typer.Argument(help="JSONL of prompts")],
    config: ConfigOption = None,
    set_: SetOption = [],  # noqa: B006
) -> None:
    """Check losslessness: greedy outputs equal with and without draft, sampled ones from the target's distribution.

    Ends with exit code 5 when the check says no.
    """
    from server.engine import engines_at_hand

    with engines_at_hand(Path("build/verify/engines.log")):
        from drafts.verifying import VerifySettings, verify

        report = verify(pair, settings_from(VerifySettings, config, set_, prompts=prompts))
    print("\n".join(report.lines()))


@app.command()
def loadtest(
    pair: Annotated[Path | None, typer.Argument(help="folder that 'choose' wrote; or give --url")] = None,
    url: Annotated[str | None, typer.Option(help="an OpenAI-compatible server that runs already")] = None,
    url_draft: Annotated[str | None, typer.Option(help="a second one, e.g. the same model with a draft")] = None,
    out: Annotated[Path, typer.Option(help="JSON file to write; the report (HTML) goes beside it")] = Path(
        "build/loadtest/loadtest.json"
    ),
    fail_if: Annotated[
        list[str], typer.Option(help="end with exit code 5 if so, e.g. 'goodput<0.95' or 'plain.errors@closed-4>0'")
    ] = [],  # noqa: B006
    config: ConfigOption = None,
    set_: SetOption = [],  # noqa: B006
) -> None:
    """Ask plain and draft the same under load, in turns: throughput, latency, goodput, and where the draft stops paying.

    Closed loops (users at a time) and open ones (arrivals per second); see `understudy settings loadtest`.
    """
    from loadtests.running import check_ready, loadtest
    from loadtests.settings import LoadSettings
    from loadtests.thresholds import check, parse_threshold

    if (pair is None) == (url is None) or (url_draft and not url):
        raise InputError("give a pair, or --url (and --url-draft) of servers that run already")
    load = settings_from(LoadSettings, config, set_)
    keys, thresholds = load.keys(os.environ), [parse_threshold(text) for text in fail_if]
    check_ready(load, thresholds, ["plain", "draft"] if pair or url_draft else ["plain"])
    if pair is None:
        addresses = {"plain": url or ""} | ({"draft": url_draft} if url_draft else {})
        record = loadtest(addresses, load, out, keys)
    else:
        from server.engine import engines_at_hand

        logs = out.parent / "engine-logs"
        with engines_at_hand(logs / "engines.log"):
            from drafts.under_load import plain_and_draft

            with plain_and_draft(pair, logs, max([16, *load.users])) as addresses:
                record = loadtest(addresses, load, out, keys, pair=str(pair))
    print(f"{out}, and the report: {out.with_suffix('.html')}")
    check(record["rows"], thresholds, record["targets"][-1])


@app.command()
def serve(
    pair: Annotated[
        Path | None,
        typer.Argument(help="folder that 'choose' wrote, or of a checkpoint alone; optional with --engine-url"),
    ] = None,
    host: Annotated[str | None, typer.Option(help="address the gateway listens on, 127.0.0.1 if not given")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="port of the gateway, 8000 if not given; 0 takes a free one")
    ] = None,
    engine_url: Annotated[str | None, typer.Option(help="a vLLM that runs elsewhere; none is started then")] = None,
    model: Annotated[str | None, typer.Option(help="name of the model, where no pair is given")] = None,
    max_model_len: Annotated[
        int | None, typer.Option(min=16, help="of a checkpoint alone: longest prompt plus answer in tokens")
    ] = None,
    tenants: Annotated[
        Path | None,
        typer.Option(
            envvar="UNDERSTUDY_TENANTS_FILE",
            help="YAML file of tenants, their keys and limits; or its text in UNDERSTUDY_TENANTS",
        ),
    ] = None,
    admin_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="loopback port for /metrics and /admin; else /metrics is on the main one"),
    ] = None,
    log_file: Annotated[Path, typer.Option(help="the engine's log")] = Path("build/engine.log"),
    allow_faulty_sampling: Annotated[bool, typer.Option(help="serve even if sampling fails its check")] = False,
    config: ConfigOption = None,
    set_: SetOption = [],  # noqa: B006
) -> None:
    """Start the engine with target and draft, or with a model alone, and serve it behind the gateway, until Ctrl-C."""
    from server.access import SOURCE
    from server.pair import read_served
    from server.run import serve
    from server.settings import GatewaySettings

    def read() -> GatewaySettings:
        return settings_from(
            GatewaySettings, config, set_, host=host, port=port, engine_url=engine_url, served_model_name=model,
            tenants_file=tenants, tenants=os.environ.get(SOURCE) or None, admin_port=admin_port,
        ).resolved(os.environ)  # fmt: skip

    served = read_served(pair, model, max_model_len) if pair else None
    serve(read(), served, log_file, allow_faulty_sampling, reread=read)


@app.command()
def engine(
    pair: Annotated[Path, typer.Argument(help="folder that 'choose' wrote, or of a checkpoint alone")],
    engine_args: Annotated[
        list[str] | None, typer.Argument(help="after `--`: further arguments of vLLM's command line")
    ] = None,
    host: Annotated[str, typer.Option(help="address the engine listens on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8001,
    target: Annotated[Path | None, typer.Option(help="the target's folder, if not where serving.json says")] = None,
    config: ConfigOption = None,
    set_: SetOption = [],  # noqa: B006
) -> None:
    """Become a pair's engine, as `serve` starts it: for containers. A gateway stands before it with `--engine-url`."""
    from server.engine_alone import become

    become(pair, target, host, port, values_from(config, set_), engine_args or [])


@app.command()
def canary(
    url: Annotated[str, typer.Argument(help="address of a running gateway, e.g. http://127.0.0.1:8000")],
    api_key: Annotated[
        str | None, typer.Option(envvar="UNDERSTUDY_ADMIN_KEY", help="sent along, for a proxy before its /admin")
    ] = None,
) -> None:
    """Compare a canary's draft with the one it may replace, on the traffic that a running gateway has seen.

    Promote it with `share: 1` under `canary` in the file given to `serve --config`, roll it back with `share: 0`, and
    send the gateway SIGHUP.
    """
    from rich.console import Console

    from server.canary_table import ask, render

    render(ask(url, api_key), Console())


@app.command()
def key(
    name: Annotated[str, typer.Argument(help="the tenant's name; label `tenant` of the metrics")],
    to: Annotated[
        Path | None, typer.Option(help="tenants file that gets the entry, made if it is not there; printed without")
    ] = None,
) -> None:
    """Make an API key: printed once, with the entry of the tenants file that holds its hash."""
    from server.tenants import add_tenant, make_key

    made = make_key()
    entry = add_tenant(name, made, to)
    print(f"{made}    # the key: give it to {name}; it is kept nowhere and cannot be shown again", file=sys.stderr)
    print(entry if to is None else to)


@app.command()
def settings(
    verb: Annotated[
        str,
        typer.Argument(
            help="a verb, or prune-width (cfsp and its baselines), prune-nuteprune; build and sweep: their files"
        ),
    ],
) -> None:
    """List a verb's settings with their defaults and what they do, for `--set`, `--config`, recipes and sweep files."""
    from drafts.building import Recipe
    from drafts.choice import ChooseSettings
    from drafts.comparing import CompareSettings
    from drafts.distilling import DistillSettings
    from drafts.judging import JudgeSettings
    from drafts.measuring import MeasureSettings
    from drafts.merging import MergeSettings
    from drafts.sweeping import Sweep
    from drafts.training import RecoverSettings
    from drafts.verifying import VerifySettings
    from evaluation.settings import EvaluateSettings
    from loadtests.settings import LoadSettings
    from pruning.nuteprune.settings import NutePruneSettings
    from pruning.settings import PruneSettings, ScoreSettings, WidthSettings
    from server.engine_command import EngineSettings
    from server.settings import GatewaySettings
    from stages.explaining import listing

    known: dict[str, type[Settings]] = {
        "score": ScoreSettings, "prune": PruneSettings, "prune-width": WidthSettings, "prune-nuteprune": NutePruneSettings,
        "distill": DistillSettings, "recover": RecoverSettings, "merge": MergeSettings, "judge": JudgeSettings,
        "evaluate": EvaluateSettings, "measure": MeasureSettings, "choose": ChooseSettings,
        "compare": CompareSettings, "verify": VerifySettings, "loadtest": LoadSettings, "serve": GatewaySettings,
        "engine": EngineSettings, "build": Recipe, "sweep": Sweep,
    }  # fmt: skip
    if verb not in known:
        raise InputError(f"settings {verb}: no such stage; one of {', '.join(known)}")
    for line in listing(known[verb]):
        print(line)


def main() -> None:
    """Runs the command; expected errors end in one line and their exit code."""
    interrupt_on_both()
    try:
        app()
    except UnderstudyError as error:
        print(f"understudy: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            print("understudy: interrupted; run the same command again to resume", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
