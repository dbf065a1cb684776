"""`python -m curator score`: a corpus's losses under one model."""

import argparse
from typing import Any

from curator.cli import Subparsers, new_parser, open_store
from curator.cli.score_options import (
    EnginePlan,
    add_cost_options,
    add_engine_options,
    add_model_options,
    add_render_options,
    add_row_options,
    add_server_options,
    automatic_engine,
    check_options,
    engine_of,
    engine_plan,
    parallel,
    ray_plan,
    render_settings,
    worker_launch,
)
from curator.cli.status import say_next
from curator.console import say, say_json, shorten_help
from curator.corpus.manifest import read_corpus, read_scorers
from curator.errors import BadInputError, BallastError
from curator.render import Renderer
from curator.scoring import (
    Sample,
    ScoreReport,
    ScoreRequest,
    check_model_dir,
    score_corpus,
)
from curator.scoring.estimate import estimate
from curator.scoring.identity import check_adapter_dir
from curator.scoring.organisms import read_organisms
from curator.scoring.ray_workers import RayWorkers
from curator.scoring.request import BLOCK_TOKENS
from curator.scoring.run import ScoreRun, WorkersFactory
from curator.scoring.shards import Shard

DESCRIPTION = """\
Computes the loss (nats, over response tokens) of every conversation of a corpus under one model, and stores sums
and counts. Score the aligned model first, then each misaligned one, with the same options: a gap refuses models
that were measured in different ways. A run that was stopped goes on where it was; a finished one is skipped.
At the end the pool file is made that mixes read, as soon as the scores give a gap."""

EXAMPLES = """\
  python -m curator score --corpus chats --model models/instruct --role aligned
  python -m curator score --corpus chats --model models/instruct --adapter runs/finance/adapter \\
      --role misaligned --domain finance
  python -m curator score --corpus chats --model models/instruct --organisms organisms
  python -m curator score --corpus chats --model models/instruct --role aligned \\
      --sample 300 --sample-fit --max-length 512      (300 rows that fit into 512 tokens)"""


# What most runs need; `--help-all` has the rest.
_SHOWN = (
    "--corpus", "--model", "--adapter", "--role", "--organisms", "--domain", "--label", "--sample", "--sample-fit",
    "--seed", "--max-length", "--engine", "--dtype", "--device", "--batch-tokens", "--threads", "--workers",
    "--server-url", "--server-model", "--dry-run", "--passes", "--price-per-hour", "--store", "--json",
)  # fmt: skip


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command's options."""
    parser = new_parser(subparsers, "score", description=DESCRIPTION, examples=EXAMPLES)
    parser.add_argument("--corpus", required=True, metavar="NAME", help="corpus to score")
    groups = (add_model_options, add_row_options, add_render_options, add_engine_options, add_server_options)
    for add_options in (*groups, add_cost_options):
        add_options(parser)
    shorten_help(parser, _SHOWN)


def run(args: argparse.Namespace) -> int:
    """Score and say what became of every row. The model is loaded only when everything cheap is in order."""
    reports = _run_organisms(args) if args.organisms is not None else [_run_one(args)]
    published = [report for report in reports if report is not None and report.published]
    if published:
        _publish(args, published[-1])
    if not args.json and not args.dry_run:
        say_next(args, open_store(args), args.corpus)
    return 0


def _publish(args: argparse.Namespace, report: ScoreReport) -> None:
    """Make the pool file that mixes read, so that no first mix waits for it; the scores stand without it."""
    from curator.select.pool import publish_pool  # Polars, which scoring does without

    try:
        for table in publish_pool(open_store(args), args.corpus, report.measure_id):
            for part in args.near_duplicates:
                table.signatures(part)
    except BallastError as error:
        if not args.json:
            say(f"note: the pool file is not made, so the first mix will make it: {error.message}")


def _run_one(args: argparse.Namespace) -> ScoreReport | None:
    """One scoring run; None for a dry run."""
    _check_numbers(args)
    store = open_store(args)
    corpus = read_corpus(store, args.corpus)
    if args.engine == "auto":
        args.engine = automatic_engine(read_scorers(store, corpus))
    check_options(args)
    if engine_of(args) != "server":
        check_model_dir(args.model)
    if args.adapter is not None:
        check_adapter_dir(args.adapter)
    sample = Sample(args.sample, args.seed, args.sample_fit) if args.sample is not None else None
    rendering = render_settings(args)
    renderer = Renderer.from_folder(args.model, settings=rendering)
    plan = engine_plan(args)
    launch, reference = plan.launch, plan.reference
    request = ScoreRequest(
        corpus=args.corpus, model_dir=args.model, adapter_dir=args.adapter and args.adapter.absolute(),
        role=args.role, domain=args.domain,
        label=plan.label, engine=launch.name, engine_version=launch.version, dtype=launch.dtype,
        mask_rule=args.mask_rule, max_length=plan.max_length, sample=sample,
        block_tokens=BLOCK_TOKENS[launch.device.partition(":")[0]], check_rows=args.check_rows,
        price_per_hour=args.price_per_hour, declared=plan.declared, merge_adapter=args.merge_adapter,
        rendering=rendering, shard=Shard.parse(args.shard) if args.shard is not None else None,
        parallel=parallel(args),
    )  # fmt: skip
    if args.dry_run:
        _dry_run(args, ScoreRun(store, request, renderer, launch, reference))
        return None
    report = score_corpus(store, request, renderer, launch, reference, _workers(args, plan))
    if args.json:
        say_json(report.document())
    else:
        _say(report)
    return report


def _workers(args: argparse.Namespace, plan: EnginePlan) -> WorkersFactory | None:
    if args.engine != "ray":
        return None
    workers = ray_plan(args, plan)
    launch = worker_launch(plan, workers)
    return lambda worker: RayWorkers(workers, worker, args.model, launch)


def _run_organisms(args: argparse.Namespace) -> list[ScoreReport | None]:
    """One pass for each adapter of `--organisms`, as if each were requested by itself.

    A server is sent each organism's own name: one name for all would score one adapter again and again.
    """
    served = engine_of(args) == "server"
    named = ["adapter", "role", "domain", "label"] + (["server_model", "declare_adapter_sha256"] if served else [])
    given = [name.replace("_", "-") for name in named if getattr(args, name) is not None]
    if given:
        raise BadInputError(f"--organisms names {', '.join(given)} itself: leave --{given[0]} out")
    reports = []
    for item in read_organisms(args.organisms, args.model).organisms:
        own = {"adapter": args.organisms / item.adapter, "role": item.role, "domain": item.domain, "label": item.name}
        if served:
            own["server_model"] = item.name
        reports.append(_run_one(argparse.Namespace(**{**vars(args), **own, "organisms": None})))
    return reports


def _check_numbers(args: argparse.Namespace) -> None:
    if args.role is None:
        raise BadInputError("--role is needed: aligned, misaligned or benign (or --organisms DIR)")
    for name in ("sample", "batch_tokens", "threads", "passes", "concurrency", "workers", "tensor_parallel"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise BadInputError(f"--{name.replace('_', '-')} {value}: give at least 1")
    if args.gpus_per_worker is not None and args.gpus_per_worker < 0:
        raise BadInputError(f"--gpus-per-worker {args.gpus_per_worker}: give 0 for none")
    if args.check_rows is not None and args.check_rows < 0:
        raise BadInputError(f"--check-rows {args.check_rows}: give 0 for none")
    if args.price_per_hour is not None and not 0 <= args.price_per_hour < float("inf"):
        raise BadInputError(f"--price-per-hour {args.price_per_hour}: give a price that is not negative")
    if args.passes is not None and not args.dry_run:
        raise BadInputError("--passes needs --dry-run: one command scores one model")
    if args.sample_fit and args.sample is None:
        raise BadInputError("--sample-fit needs --sample N")
    if args.role != "aligned" and not args.domain:
        raise BadInputError(f"--role {args.role} needs --domain: the narrow field the model was tuned on")


def _dry_run(args: argparse.Namespace, run: ScoreRun) -> None:
    try:
        found = estimate(run, passes=args.passes or 1)
    finally:
        run.engine.close()
    if args.json:
        say_json(found.document())
        return
    kind = "counted" if found.exact else f"estimated from {found.n_rows_rendered:,} rows"
    say(f"{found.n_rows:,} rows without a loss, {found.n_rows_to_score:,} of them can be scored")
    say(f"  tokens: {found.n_tokens:,} a pass ({kind}), and {found.n_tokens_checked:,} scored again")
    say(f"  passes: {found.passes}")
    if found.hours is None or found.tokens_per_s is None:
        say("  nothing to measure")
        return
    say(f"  hours:  {found.hours:.3g} at {found.tokens_per_s:,.0f} tokens/s (measured for {found.burst_s:.1f} s)")
    if found.price is not None:
        say(f"  price:  {found.price:.2f} at {args.price_per_hour:g} an hour")
    say("Nothing was stored.")


def _say(report: ScoreReport) -> None:
    for warning in report.warnings:
        say(f"note: {warning}")
    counts = ", ".join(f"{name} {n:,}" for name, n in sorted(report.status_counts.items()))
    domain = f", domain {report.domain}" if report.domain else ""
    say(f"scorer {report.label} ({report.role}{domain}, {report.dtype}) {report.scorer_id}")
    say(f"  {report.n_rows:,} rows: {counts}")
    if report.dropped:
        parts = ", ".join(f"{part} {n:,}" for part, n in report.dropped.items())
        say(f"  rows of which the template leaves out a part, which was accepted: {parts}")
    if report.skipped:
        say("  complete before; nothing to do")
        return
    rate = report.n_tokens_now / report.seconds_now if report.seconds_now else 0.0
    say(
        f"  now: {report.n_rows_now:,} rows, {report.n_tokens_now:,} tokens in {report.seconds_now:.1f} s "
        f"({rate:,.0f} tokens/s, loading and checks included)"
    )
    if report.check is not None:
        say(f"  {_check_line(report.check)}")
    if not report.published:
        say(
            f"shard {report.shard} is done; {report.n_missing:,} rows are missing, and the scorer is not published "
            f"before these shards are done: {', '.join(report.missing_shards)}"
        )


def _check_line(check: dict[str, Any]) -> str:
    if not check.get("n_rows"):
        return f"no row was scored again: {check.get('reason')}"
    parts = [f"another order {check['permuted']['max_abs']:.1e}"]
    if check["reference"]:
        parts.append(f"plain torch row by row {check['reference']['max_abs']:.1e}")
    if check.get("merge_error"):
        parts.append(f"of which merging is part (mean {check['merge_error']['mean']:+.1e})")
    return f"{check['n_rows']} rows scored again; largest difference, nats per token: {', '.join(parts)}"
