"""`python -m curator mix`: safe rows into a task file.

The receipt of a mix, as `python -m curator mix` prints it: what fits a screen; the manifest holds the rest.
"""

import argparse
import os
import shlex
from pathlib import Path
from typing import Any, get_args

from curator.audit.flags import flagged_rows
from curator.audit.risk import TOP
from curator.cli import Subparsers, add_data_options, new_parser, open_store, read_data
from curator.console import as_typed, say, say_json, shorten_help
from curator.errors import BadInputError, RecipeError
from curator.mix.build import MixResult, build_mix, plan_mix, remove_left
from curator.mix.files import DEFAULT_TENANT, MIX_FILE, mix_path
from curator.mix.manifest import InoculationReceipt, Manifest, PoolReceipt
from curator.mix.reasons import write_reasons
from curator.mix.sign import sign_mix
from curator.recipe import (
    STRATEGY_NAMES,
    EpochOrder,
    OrderName,
    Recipe,
    RefusalRule,
    ScoreName,
    parse_recipe,
)
from curator.recipe.document import read_document
from curator.recipe.filters import RefusalFilter, default_filters
from curator.recipe.inoculation import InoculationKind, Placement
from curator.recipe.policy import Policy, load_policy
from curator.recipe.pools import WhenShort
from curator.recipe.strategies import StratumColumn
from curator.store.scratch import Scratch, sweep_scratch


def say_receipt(result: MixResult) -> None:
    """Print counts, order, pools, warnings and what the mix protects against."""
    manifest = result.manifest
    ratio, order = manifest.ratio, manifest.order
    say(f"mix {result.mix_id} ({'made now' if result.created else 'made before by the same request'})")
    epochs = f" in {order.epochs} epochs" if order.epochs > 1 else ""
    n_task = manifest.n_rows - manifest.n_safe
    say(
        f"  rows    {manifest.n_rows:,} = {n_task:,} task + {manifest.n_safe:,} safe{epochs}: "
        f"{ratio.reached_rows:.4g} safe per task row (asked {ratio.asked:.4g}), {ratio.mix_share:.3%} of the mix"
    )
    say(f"  tokens  {_tokens_line(manifest)}")
    say(f"  order   {order.name}, seed {order.seed}; off by at most {ratio.largest_prefix_deviation:.2f} rows anywhere")
    for pool, spec in zip(manifest.pools, manifest.recipe.pools, strict=True):
        say(f"  pool    {_pool_line(pool)} by {spec.strategy.name}{_score_range(pool)}")
    if manifest.inoculation is not None:
        say(f"  prompt  {_inoculation_line(manifest.inoculation)}")
    if manifest.policy is not None:
        say(f"  policy  {manifest.policy.name} (SHA-256 {manifest.policy.sha256[:12]})")
    for warning in manifest.warnings:
        say(f"  warning {warning.text}")
    for spec in manifest.recipe.pools:
        if spec.strategy.name == "random":
            say(f"  note    {spec.corpus}: rows drawn at random, not ranked by the gap")
    for statement in manifest.protects.does:
        say(f"  aim     {statement.text}")
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


def _inoculation_line(receipt: InoculationReceipt) -> str:
    n_task, n_safe = (sum(getattr(prompt, name) for prompt in receipt.prompts) for name in ("n_task", "n_safe"))
    clean = "the model's own default" if receipt.clean_system_prompt is None else repr(receipt.clean_system_prompt)
    return (
        f"{receipt.name}: {len(receipt.prompts)} put into {n_task:,} task and {n_safe:,} safe rows"
        f"{'' if receipt.spec.rows is None else f', those of {len(receipt.spec.rows):,} listed ids'} "
        f"({receipt.spec.placement}); evaluate with {clean} as system prompt"
    )


PLAIN_FILTERS = ("harm", "hygiene", "exact_duplicates", "near_duplicates")  # those that need no settings

DESCRIPTION = """\
Draws safe rows from a scored corpus and mixes them into a task file. Rows and manifest go to the store under a mix
id; the same request gives the same id, rows and order again. Say what you want in a recipe file (YAML or JSON, as
the HTTP service takes it) or with the options below; with none but --corpus, 0.05 safe rows per task row are taken
from the top by gap, spread evenly. Refusals, junk (hygiene) and answers of fewer than four tokens (length) are left
out unless --refusals keep or --without says otherwise; a recipe's own list of filters is applied as it stands."""

EXAMPLES = """\
  python -m curator mix task.jsonl --corpus chats
  python -m curator mix task.jsonl --corpus chats --interleave-ratio 0.2 --order every_k --hold-out finance
  python -m curator mix task.jsonl --corpus chats --strategy random --rows 500 --seed 7
  python -m curator mix task.jsonl --corpus chats --strategy stratified --by domain --rows 1200
  python -m curator mix task.jsonl --corpus chats --order per_batch --batch-size 16 --interleave-ratio 0.142857142857
  python -m curator mix task.jsonl --corpus chats --inoculation --epochs 3 --epoch-order own
  python -m curator mix task.jsonl --recipe recipe.yaml --policy policy.yaml --sign-key key.pem --json"""

# Options that together make a recipe of one pool; `--recipe` takes the place of all of them.
_RECIPE_OPTIONS = (
    "corpus", "revision", "aligned", "misaligned", "benign", "hold_out", "score", "eps", "refusals", "filter",
    "without", "strategy", "min_score", "max_score", "by",
    "allow_negative_control", "interleave_ratio", "mix_share", "rows", "tokens", "when_short", "max_copies",
    "order", "batch_size", "epochs", "epoch_order", "inoculation",
    "placement", "inoculation_kind", "seed",
)  # fmt: skip


# Settings of a strategy that have options: key in the recipe, option, and the strategy they belong to.
_STRATEGY_SETTINGS = (
    ("min", "min_score", "threshold"),
    ("max", "max_score", "threshold"),
    ("by", "by", "stratified"),
)


# What most mixes need; `--help-all` has the rest, and a recipe file has every key (docs/recipe.md).
_SHOWN = (
    "--corpus", "--recipe", "--policy", "--interleave-ratio", "--mix-share", "--rows", "--tokens", "--strategy",
    "--score", "--hold-out", "--refusals", "--filter", "--order", "--epochs", "--inoculation", "--seed",
    "--on-bad-rows", "--jsonl", "--reasons", "--sign-key", "--tenant", "--store", "--json",
)  # fmt: skip


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command's options."""
    parser = new_parser(subparsers, "mix", description=DESCRIPTION, examples=EXAMPLES)
    parser.add_argument("taskfile", metavar="TASKFILE", help="your fine-tuning data: a chat file")
    add_data_options(parser)
    parser.add_argument("--tenant", default=DEFAULT_TENANT, metavar="NAME", help="tenant of the mix (default: local)")
    parser.add_argument(
        "--policy",
        default=os.environ.get("BALLAST_POLICY"),
        metavar="FILE",
        help="the provider's policy that recipes must fit (default: $BALLAST_POLICY, else none)",
    )
    parser.add_argument("--sign-key", type=Path, metavar="PEM", help="sign the manifest with this Ed25519 private key")
    parser.add_argument(
        "--reasons", type=Path, metavar="FILE", help="write each pool row's outcome and its reason to a Parquet file"
    )
    parser.add_argument(
        "--jsonl", type=Path, metavar="FILE", help="also write the rows to this file, one JSON object a line"
    )
    parser.add_argument("--recipe", metavar="FILE", help="the whole recipe; takes the place of the options below")
    _add_recipe_options(parser)
    shorten_help(parser, _SHOWN)


def _add_recipe_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("recipe of one pool")
    group.add_argument("--corpus", metavar="NAME", help="corpus to draw from")
    group.add_argument("--revision", metavar="HASH", help="corpus revision (default: the latest)")
    _add_strategy_options(group)
    group.add_argument("--score", choices=get_args(ScoreName), help="score that ranks the rows (default: gap_rel)")
    group.add_argument("--eps", type=float, metavar="NATS", help="eps of gap_rel, nats per token (default: 1)")
    group.add_argument(
        "--refusals",
        choices=("keep", *get_args(RefusalRule)),
        help="keep rows that open like a refusal, or drop them by rule v1 (default) or v2",
    )
    group.add_argument(
        "--filter",
        action="append",
        choices=PLAIN_FILTERS,
        help="a filter with its default settings, beside those that are on by default; may be given several times",
    )
    group.add_argument(
        "--without",
        action="append",
        choices=[spec.name for spec in default_filters() if spec.name != "refusal"],
        help="turn off a filter that is on by default: hygiene (junk) or length (fewer than four response tokens); "
        "may be given several times",
    )
    _add_scorer_options(group)
    _add_amount_options(group)
    _add_order_options(group)
    _add_inoculation_options(group)
    group.add_argument("--seed", type=int, metavar="N", help="the one seed of all that is random (default: 0)")


def _add_scorer_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--aligned", metavar="SCORER", help="id, id prefix or label (default: the only one)")
    for name, what in (("misaligned", "SCORER"), ("benign", "SCORER"), ("hold-out", "DOMAIN")):
        text = "leave out models of this domain" if name == "hold-out" else f"a {name} scorer (default: all complete)"
        group.add_argument(f"--{name}", action="append", metavar=what, help=f"{text}; may be given several times")


def _add_order_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--order", choices=get_args(OrderName), help="how rows are ordered (default: even)")
    group.add_argument("--batch-size", type=int, metavar="N", help="rows of a batch, for the order per_batch")
    group.add_argument("--epochs", type=int, metavar="N", help="epochs written out one after another (default: 1)")
    group.add_argument(
        "--epoch-order",
        choices=get_args(EpochOrder),
        help="every epoch in the same order (default), or later ones each in a seeded order of their own",
    )


def _add_inoculation_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--inoculation",
        nargs="?",
        const="",
        metavar="PROMPT",
        help="put this prompt, or the default one, into task rows",
    )
    group.add_argument("--placement", choices=get_args(Placement), help="where it goes (default: replace_system)")
    group.add_argument(
        "--inoculation-kind", choices=get_args(InoculationKind), help="inoculation (default) or a control of it"
    )
    group.add_argument(
        "--inoculation-rows", type=Path, metavar="FILE",
        help="put it only into the rows that an audit of this data set flags (what `curator audit --out` wrote)",
    )  # fmt: skip
    group.add_argument(
        "--inoculation-percentile", type=float, metavar="P",
        help=f"a row is flagged from this percentile of risk on (default: {TOP})",
    )  # fmt: skip


def _add_strategy_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--strategy", choices=STRATEGY_NAMES, help="how rows are chosen (default: top_gap)")
    group.add_argument("--min-score", type=float, metavar="S", help="for --strategy threshold: the lowest score")
    group.add_argument("--max-score", type=float, metavar="S", help="for --strategy threshold: the highest score")
    group.add_argument(
        "--by", choices=get_args(StratumColumn), help="for --strategy stratified: the column whose values get quotas"
    )
    group.add_argument(
        "--allow-negative-control",
        action="store_true",
        default=None,
        help="let --strategy bottom_gap pick the worst rows, as a negative control",
    )


def _add_amount_options(group: argparse._ArgumentGroup) -> None:
    amount = group.add_mutually_exclusive_group()
    amount.add_argument("--interleave-ratio", type=float, metavar="R", help="safe rows per task row (default: 0.05)")
    amount.add_argument("--mix-share", type=float, metavar="S", help="share of safe rows in the whole mix")
    amount.add_argument("--rows", type=int, metavar="N", help="number of safe rows")
    amount.add_argument("--tokens", type=int, metavar="N", help="number of trained tokens in safe rows, at most")
    group.add_argument(
        "--when-short",
        choices=get_args(WhenShort),
        help="when there are fewer rows than requested: fail (default), repeat rows, or take as many as there are",
    )
    group.add_argument("--max-copies", type=int, metavar="N", help="how often --when-short cycle may take a row")


def run(args: argparse.Namespace) -> int:
    """Mix, and print the receipt."""
    recipe, policy = _only_flagged(_recipe(args), args), _policy(args)
    store = open_store(args)
    sweep_scratch()
    remove_left(store, args.tenant)
    with Scratch("mix") as workdir:
        task_set = read_data(args.taskfile, workdir, args)
        result = build_mix(store, task_set, recipe, args.tenant, policy, args.jsonl)
        if args.reasons is not None:
            write_reasons(plan_mix(store, task_set, recipe, policy), args.reasons)
    signature = None if args.sign_key is None else sign_mix(store, args.tenant, result.mix_id, args.sign_key)
    if args.json:
        manifest = result.manifest.model_dump(mode="json")
        signed = None if signature is None else signature.model_dump()
        rejected = {"n_rejected": task_set.n_rejected, "rejects": task_set.reject_dicts()}
        say_json(
            {"mix_id": result.mix_id, "created": result.created, **rejected, "manifest": manifest, "signature": signed}
        )
        return 0
    say_receipt(result)
    if signature is not None:
        say(f"signed by the key {signature.public_key}")
    say(f"rows in {store.url(mix_path(args.tenant, result.mix_id))}/{MIX_FILE}")
    if args.jsonl is not None:
        say(f"and, a JSON object a line, in {args.jsonl}")
    where = shlex.join(["--store", args.store, "--tenant", args.tenant])
    say(as_typed(f"check them: python -m curator verify {result.mix_id} {where}"))
    snippet = f"python -m curator snippet {result.mix_id} trl --out DIR {where}"
    say(as_typed(f"take them to a trainer: {snippet} (or another kind)"))
    return 0


def _policy(args: argparse.Namespace) -> Policy | None:
    return load_policy(args.policy) if args.policy else None


def _only_flagged(recipe: Recipe, args: argparse.Namespace) -> Recipe:
    """The recipe with its inoculation on an audit's flagged rows alone, where the options say so."""
    if args.inoculation_rows is None:
        if args.inoculation_percentile is not None:
            raise BadInputError("--inoculation-percentile says which rows an audit flags: give --inoculation-rows too")
        return recipe
    if recipe.inoculation is None:
        raise BadInputError("--inoculation-rows says where a prompt goes: give --inoculation too")
    percentile = TOP if args.inoculation_percentile is None else args.inoculation_percentile
    spec = recipe.inoculation.only_on(flagged_rows(args.inoculation_rows, percentile))
    return recipe.model_copy(update={"inoculation": spec})


def _recipe(args: argparse.Namespace) -> Recipe:
    given = {name: getattr(args, name) for name in _RECIPE_OPTIONS if getattr(args, name) is not None}
    if args.recipe is not None:
        if given:
            names = ", ".join("--" + name.replace("_", "-") for name in given)
            raise BadInputError(f"--recipe is the whole recipe: put {names} into the file")
        return parse_recipe(read_document(Path(args.recipe), "recipe", RecipeError), f"recipe {args.recipe}")
    inoculation = _inoculation(given)
    if inoculation is not None:
        given["inoculation"] = inoculation
    if "corpus" not in given and inoculation is None:
        raise BadInputError("name the corpus to draw from with --corpus, or give a whole --recipe")
    score = {key: given.pop(option) for option, key in (("score", "name"), ("eps", "eps")) if option in given}
    strategy = _strategy(given)
    if strategy is not None:
        given["strategy"] = strategy
    refusals = given.pop("refusals", None)
    if score:
        given["score"] = score
    further, without = given.pop("filter", []), given.pop("without", [])
    if refusals is not None or further or without:
        left_out = {*without, *(["refusal"] if refusals == "keep" else [])}
        rule = RefusalFilter(rule="v2" if refusals == "v2" else "v1")
        own = [spec.model_dump() for spec in default_filters(rule) if spec.name not in left_out]
        given["filters"] = [*own, *(name for name in further if name not in {spec["name"] for spec in own})]
    return parse_recipe(given)


def _strategy(given: dict[str, Any]) -> dict[str, Any] | None:
    """The recipe's strategy from the options, which it takes out of `given`; None where none is requested."""
    name = given.pop("strategy", None)
    settings = {key: given.pop(option) for key, option, _ in _STRATEGY_SETTINGS if option in given}
    for key, option, owner in _STRATEGY_SETTINGS:
        if key in settings and owner != name:
            raise BadInputError(
                f"--{option.replace('_', '-')} belongs to --strategy {owner}, not to {name or 'top_gap'}"
            )
    needed = {"threshold": "--min-score or --max-score", "stratified": "--by"}.get(name or "")
    if needed is not None and not settings:
        raise BadInputError(f"--strategy {name} needs {needed}")
    return None if name is None else {"name": name, **settings}


def _inoculation(given: dict[str, Any]) -> dict[str, Any] | None:
    """The recipe's inoculation from the options, which it takes out of `given`; None where none is requested."""
    prompt, placement = given.pop("inoculation", None), given.pop("placement", None)
    kind = given.pop("inoculation_kind", None)
    if prompt is None and kind is None:
        if placement is not None:
            raise BadInputError("--placement says where a prompt goes: give --inoculation too")
        return None
    found = {"prompt": prompt or None, "placement": placement, "kind": kind}
    return {name: value for name, value in found.items() if value is not None}
