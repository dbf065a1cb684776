"""`python -m curator mix`: safe rows into a task file."""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

from curator.build import MixResult, build_mix
from curator.commands import Subparsers, list_problems, new_parser, open_store, say_json
from curator.config import OrderName, Recipe, RefusalRule, ScoreName, StrategyName, parse_recipe
from curator.errors import BadInputError, BadRowsError, MissingError, RecipeError
from curator.formats import CONTAINERS, LAYOUTS
from curator.mixrows import DEFAULT_TENANT, MIX_FILE, mix_path
from curator.progress import say
from curator.receipt import Manifest, PoolReceipt
from curator.tasks import TaskSet, read_task_set

N_LISTED = 20

DESCRIPTION = """\
Draws safe rows from a scored corpus and mixes them into a task file. Rows and manifest go to the store under a mix
id; the same request gives the same id, rows and order again. Say what you want in a recipe file (YAML or JSON, as
the HTTP service takes it) or with the options below; with none but --corpus, 0.05 safe rows per task row are taken
from the top by gap, refusals left out, spread evenly."""

EXAMPLES = """\
  python -m curator mix task.jsonl --corpus chats
  python -m curator mix task.jsonl --corpus chats --interleave-ratio 0.2 --order every_k --hold-out finance
  python -m curator mix task.jsonl --corpus chats --strategy random --rows 500 --seed 7
  python -m curator mix task.jsonl --recipe recipe.yaml --json"""

# Options that together make a recipe of one pool; `--recipe` takes the place of all of them.
_RECIPE_OPTIONS = (
    "corpus", "revision", "aligned", "misaligned", "benign", "hold_out", "score", "eps", "refusals", "strategy",
    "interleave_ratio", "mix_share", "rows", "order", "seed",
)  # fmt: skip


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command's options."""
    parser = new_parser(subparsers, "mix", description=DESCRIPTION, examples=EXAMPLES)
    parser.add_argument("taskfile", metavar="TASKFILE", help="your fine-tuning data: a chat file")
    parser.add_argument("--format", choices=CONTAINERS, help="how records are packed (default: detected)")
    parser.add_argument("--layout", choices=LAYOUTS, help="how a conversation is written (default: each as it shows)")
    parser.add_argument(
        "--on-bad-rows",
        choices=("refuse", "drop"),
        default="refuse",
        help="refuse a task file with bad rows and list them (default), or keep them out and count them",
    )
    parser.add_argument("--tenant", default=DEFAULT_TENANT, metavar="NAME", help="whose mix it is (default: local)")
    parser.add_argument("--recipe", metavar="FILE", help="the whole recipe; takes the place of the options below")
    _add_recipe_options(parser)


def _add_recipe_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("recipe of one pool")
    group.add_argument("--corpus", metavar="NAME", help="corpus to draw from")
    group.add_argument("--revision", metavar="HASH", help="corpus revision (default: the latest)")
    group.add_argument("--strategy", choices=get_args(StrategyName), help="how rows are chosen (default: top_gap)")
    group.add_argument("--score", choices=get_args(ScoreName), help="what rows are ranked by (default: gap_rel)")
    group.add_argument("--eps", type=float, metavar="NATS", help="eps of gap_rel, nats per token (default: 1)")
    group.add_argument(
        "--refusals",
        choices=("keep", *get_args(RefusalRule)),
        help="keep rows that open like a refusal, or drop them by rule v1 (default) or v2",
    )
    group.add_argument("--aligned", metavar="SCORER", help="id, id prefix or label (default: the only one)")
    for name, what in (("misaligned", "SCORER"), ("benign", "SCORER"), ("hold-out", "DOMAIN")):
        text = "leave out models of this domain" if name == "hold-out" else f"a {name} scorer (default: all complete)"
        group.add_argument(f"--{name}", action="append", metavar=what, help=f"{text}; may be given several times")
    amount = group.add_mutually_exclusive_group()
    amount.add_argument("--interleave-ratio", type=float, metavar="R", help="safe rows per task row (default: 0.05)")
    amount.add_argument("--mix-share", type=float, metavar="S", help="share of safe rows in the whole mix")
    amount.add_argument("--rows", type=int, metavar="N", help="number of safe rows")
    group.add_argument("--order", choices=get_args(OrderName), help="how rows are ordered (default: even)")
    group.add_argument("--seed", type=int, metavar="N", help="the one seed of all that is random (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Mix, and print the receipt."""
    recipe = _recipe(args)
    store = open_store(args)
    with TemporaryDirectory(prefix="ballast-") as workdir:
        task_set = read_task_set(args.taskfile, workdir, format=args.format, layout=args.layout)
        _deal_with_bad_rows(task_set, args)
        result = build_mix(store, task_set, recipe, args.tenant)
    if args.json:
        manifest = result.manifest.model_dump(mode="json")
        rejected = {"n_rejected": task_set.n_rejected, "rejects": task_set.reject_dicts()}
        say_json({"mix_id": result.mix_id, "created": result.created, **rejected, "manifest": manifest})
        return 0
    _say_receipt(result)
    say(f"rows in {store.url(mix_path(args.tenant, result.mix_id))}/{MIX_FILE}")
    say(f"check them: python -m curator verify {result.mix_id} --store {args.store} --tenant {args.tenant}")
    return 0


def _recipe(args: argparse.Namespace) -> Recipe:
    given = {name: getattr(args, name) for name in _RECIPE_OPTIONS if getattr(args, name) is not None}
    if args.recipe is not None:
        if given:
            names = ", ".join("--" + name.replace("_", "-") for name in given)
            raise BadInputError(f"--recipe is the whole recipe: put {names} into the file")
        return parse_recipe(_read_document(Path(args.recipe)))
    if "corpus" not in given:
        raise BadInputError("name the corpus to draw from with --corpus, or give a whole --recipe")
    score = {key: given.pop(option) for option, key in (("score", "name"), ("eps", "eps")) if option in given}
    refusals = given.pop("refusals", None)
    if score:
        given["score"] = score
    if refusals is not None:
        given["filters"] = [] if refusals == "keep" else [{"name": "refusal", "rule": refusals}]
    return parse_recipe(given)


def _read_document(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingError(f"there is no recipe file {path}") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"{path} is neither YAML nor JSON: {error}") from error


def _deal_with_bad_rows(task_set: TaskSet, args: argparse.Namespace) -> None:
    """Refuse or go on without them; either way each problem is listed (capped) for a person."""
    if task_set.n_rejected and not args.json:
        list_problems(task_set.reject_dicts()[:N_LISTED])
    if args.on_bad_rows == "drop":
        return
    try:
        task_set.require_no_rejects()
    except BadRowsError as error:
        hint = "mend the file, or keep bad rows out with --on-bad-rows drop"
        raise BadRowsError(f"{error.message}; {hint}", details=error.details) from error


def _say_receipt(result: MixResult) -> None:
    manifest = result.manifest
    ratio, order = manifest.ratio, manifest.order
    say(f"mix {result.mix_id} ({'made now' if result.created else 'made before by the same request'})")
    say(
        f"  rows    {manifest.n_rows:,} = {manifest.task.n_rows:,} task + {manifest.n_safe:,} safe: "
        f"{ratio.reached_rows:.4g} safe per task row (asked {ratio.asked:.4g}), {ratio.mix_share:.3%} of the mix"
    )
    say(f"  tokens  {_tokens_line(manifest)}")
    say(f"  order   {order.name}, seed {order.seed}; off by at most {ratio.largest_prefix_deviation:.2f} rows anywhere")
    for pool, spec in zip(manifest.pools, manifest.recipe.pools, strict=True):
        say(f"  pool    {_pool_line(pool)} by {spec.strategy.name}{_score_range(pool)}")
    for warning in manifest.warnings:
        say(f"  warning {warning.text}")
    for statement in manifest.protects.does:
        say(f"  does    {statement.text}")
    for statement in manifest.protects.does_not:
        say(f"  not     {statement.text}")


def _tokens_line(manifest: Manifest) -> str:
    tokens = manifest.tokens
    if tokens.task is None or tokens.safe is None:
        return f"not counted: {tokens.reason}"
    reached = manifest.ratio.reached_response_tokens
    return (
        f"{tokens.task.total + tokens.safe.total:,}, of which trained {tokens.task.response:,} task + "
        f"{tokens.safe.response:,} safe" + ("" if reached is None else f" ({reached:.4g} safe per task token)")
    )


def _pool_line(pool: PoolReceipt) -> str:
    dropped = "".join(f", {count:,} {reason}" for reason, count in pool.dropped.items() if count)
    return f"{pool.name}: {pool.n_candidates:,} rows{dropped}; {pool.chosen:,} chosen of {pool.n_eligible:,}"


def _score_range(pool: PoolReceipt) -> str:
    chosen = pool.quantiles["chosen"]
    return "" if chosen is None else f" ({pool.score} {chosen.min:.3f} to {chosen.max:.3f})"
