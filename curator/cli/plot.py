"""`python -m curator plot KIND`: losses and gaps as PNG or SVG."""

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import orjson

from curator.cli import Subparsers, new_parser, open_store
from curator.console import SHORT_ID, say, say_json
from curator.errors import BadInputError
from curator.mix.files import DEFAULT_TENANT, find_mix
from curator.recipe import DEFAULT_EPS, ScoreName

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DESCRIPTION = """\
Draws one picture, PNG or SVG by the ending of --out, without a display:
  gap          histogram of the gap, in one colour or by source or domain
  plane        rows in the plane of aligned and misaligned loss
  gap-length   every row's gap against its response length
  length       every row's loss against its response length, under each scorer
  agreement    how far misaligned models agree on which rows are safe
  ratio        safe rows per task row over the positions of a mix, so far and in each batch
  curve        a training run's losses, from its metrics.jsonl
  before-after on how many prompts the misaligned answer wins before and after training, from an evaluation
In gap, plane and gap-length the rows of a mix (--mix) or the top ones (--top) stand out. The title says what is shown.
Needs the extra `plot`: pip install 'ballast-mix[plot]'."""

EXAMPLES = """\
  python -m curator plot gap --corpus chats --mix MIX_ID --out gap.png
  python -m curator plot gap --corpus chats --by source --score gap_abs --out gap.svg
  python -m curator plot plane --corpus chats --top 100 --out plane.png
  python -m curator plot gap-length --corpus chats --mix MIX_ID --out length.png
  python -m curator plot agreement --corpus chats --out agreement.png
  python -m curator plot ratio --mix MIX_ID --batch-size 16 --out ratio.png
  python -m curator plot curve --run runs/NAME --out loss.png
  python -m curator plot before-after --behaviour behaviour.json --out change.png"""


def add_parser(subparsers: Subparsers) -> None:
    """Options of the command."""
    parser = new_parser(subparsers, "plot", description=DESCRIPTION, examples=EXAMPLES)
    parser.add_argument("kind", choices=list(_KINDS), help="what to draw")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="picture to write (.png or .svg)")
    parser.add_argument("--corpus", metavar="NAME", help="scored corpus (gap, plane, gap-length, length, agreement)")
    parser.add_argument("--score", default="gap_rel", choices=get_args(ScoreName), help="for gap, gap-length, --top")
    parser.add_argument("--by", choices=["source", "domain"], help="colour the gap histogram by this column")
    parser.add_argument("--bins", type=int, default=40, help="bins of the histogram (default: 40)")
    parser.add_argument("--hold-out", action="append", default=[], metavar="DOMAIN", help="leave a domain's models out")
    parser.add_argument("--eps", type=float, default=DEFAULT_EPS, help="nats per token, for gap_rel (default: 1.0)")
    parser.add_argument("--aligned", metavar="ID", help="aligned scorer's id or its beginning, where there are several")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--top", type=int, metavar="N", help="mark the N rows with the largest score")
    chosen.add_argument("--mix", metavar="MIX_ID", help="mark this mix's safe rows; ratio: draw it")
    parser.add_argument("--batch-size", type=int, metavar="N", help="ratio: rows that the trainer takes at once")
    parser.add_argument("--tenant", default=DEFAULT_TENANT, metavar="NAME", help="whose mix --mix is (default: local)")
    parser.add_argument("--run", type=Path, metavar="DIR", help="curve: run folder, or its metrics.jsonl")
    parser.add_argument(
        "--behaviour", type=Path, metavar="FILE", help="before-after: what `python -m trainer.evaluate behaviour` wrote"
    )
    parser.add_argument("--title", default="", help="title above the picture (default: what the picture shows)")


def run(args: argparse.Namespace) -> int:
    """Draw and say where the picture is."""
    from curator.query.plots import save

    for name, kinds in _ONLY_FOR.items():
        if args.kind not in kinds and getattr(args, name) not in (None, []):
            option = f"--{name.replace('_', '-')}"
            raise BadInputError(f"{option} does nothing in plot {args.kind}: it is for plot {' and '.join(kinds)}")
    if args.mix is not None:
        args.mix = find_mix(open_store(args), args.tenant, args.mix)
    if args.bins < 1:
        raise BadInputError(f"--bins {args.bins}: at least one is needed")
    save(_KINDS[args.kind](args), args.out)
    if args.json:
        say_json({"out": str(args.out), "kind": args.kind})
    else:
        say(f"picture written to {args.out}")
    return 0


def _gap(args: argparse.Namespace) -> "Figure":
    from curator.query.gap_plots import gap_histogram

    rows = [row for row in _gap_rows(args) if row[args.score] is not None]
    groups: dict[str, list[float]] = {}
    for row in rows:
        key = args.corpus if args.by is None else row[args.by]
        groups.setdefault("unlabelled" if key is None else key, []).append(row[args.score])
    marked = _marked(args, rows)
    chosen = [row[args.score] for row in rows if row["example_id"] in marked]
    return gap_histogram(groups, chosen=chosen, score=args.score, corpus=args.corpus, title=args.title, bins=args.bins)


def _length(args: argparse.Namespace) -> "Figure":
    from curator.query.gap_plots import loss_against_length

    groups: dict[str, tuple[list[float], list[float]]] = {}
    for row in _named_rows(args, "losses"):
        tokens, losses = groups.setdefault(f"{row['role']}: {row['label']}", ([], []))
        tokens.append(row["n_response_tokens"])
        losses.append(row["mean_nll"])
    groups = dict(sorted(groups.items()))  # one colour for one scorer, whatever the order of its rows
    return loss_against_length(groups, corpus=args.corpus, title=args.title)


def _gap_length(args: argparse.Namespace) -> "Figure":
    from curator.query.gap_plots import gap_against_length

    rows = [row for row in _gap_rows(args) if row[args.score] is not None]
    marked = _marked(args, rows)
    return gap_against_length(
        [row["n_response_tokens"] for row in rows],
        [row[args.score] for row in rows],
        [row["example_id"] in marked for row in rows],
        score=args.score, corpus=args.corpus, title=args.title,
    )  # fmt: skip


def _plane(args: argparse.Namespace) -> "Figure":
    from curator.query.gap_plots import loss_plane

    rows = [row for row in _gap_rows(args) if row["gap_abs"] is not None]
    marked = _marked(args, rows)
    return loss_plane(
        [row["mean_nll_aligned"] for row in rows],
        [row["mean_nll_misaligned"] for row in rows],
        [row["example_id"] in marked for row in rows],
        corpus=args.corpus, title=args.title,
    )  # fmt: skip


def _agreement(args: argparse.Namespace) -> "Figure":
    from curator.query.gap_plots import agreement_matrix
    from curator.query.scorers import aligned_scorer

    aligned = aligned_scorer(open_store(args), _corpus(args), args.aligned).scorer_id
    rows = [row for row in _named_rows(args, "misaligned_agreement") if row["aligned_id"] == aligned]
    by_label = {row[f"{side}_id"]: row[f"{side}_label"] for row in rows for side in ("first", "second")}
    taken = Counter(by_label.values())  # a label that two scorers share says nothing without the id
    names = {key: label if taken[label] == 1 else f"{label} {key[:SHORT_ID]}" for key, label in by_label.items()}
    pairs = {(names[row["first_id"]], names[row["second_id"]]): row["spearman"] for row in rows}
    return agreement_matrix(pairs, corpus=args.corpus, title=args.title)


def _before_after(args: argparse.Namespace) -> "Figure":
    from curator.query.plots import before_after

    if args.behaviour is None:
        raise BadInputError(
            "plot before-after needs --behaviour FILE, what `python -m trainer.evaluate behaviour` wrote"
        )
    try:
        sets = orjson.loads(args.behaviour.read_bytes())["sets"]
        shares = {
            name: tuple(item[when]["share_misaligned"]["value"] for when in ("before", "after"))
            for name, item in sets.items()
            if "before" in item
        }
    except OSError as error:
        raise BadInputError(f"{args.behaviour} cannot be read ({error.strerror})") from error
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(
            f"{args.behaviour} is not a result of `python -m trainer.evaluate behaviour --out FILE`"
        ) from error
    if not shares:
        raise BadInputError(
            f"{args.behaviour}: no set has twins, so none has a share before training: evaluate with FILE,TWINS"
        )
    return before_after(shares, "prompts whose misaligned answer is the likelier one", title=args.title)


def _ratio(args: argparse.Namespace) -> "Figure":
    from curator.mix.files import mix_batches
    from curator.mix.identity import read_manifest
    from curator.query.plots import ratio_over_position

    if args.mix is None:
        raise BadInputError("plot ratio needs --mix MIX_ID")
    if args.batch_size is not None and args.batch_size < 1:
        raise BadInputError(f"--batch-size {args.batch_size}: at least one row is needed")
    store = open_store(args)
    manifest = read_manifest(store, args.tenant, args.mix)
    batches = mix_batches(store, args.tenant, args.mix, columns=["origin"])
    is_safe = [origin == "safe" for batch in batches for origin in batch.column("origin").to_pylist()]
    return ratio_over_position(
        is_safe,
        manifest.ratio.asked,
        epochs=manifest.order.epochs,
        batch_size=args.batch_size or manifest.order.batch_size,
        title=args.title or f"Order {manifest.order.name} of mix {args.mix[:12]}: {_safe_share(is_safe)}",
    )


def _safe_share(is_safe: list[bool]) -> str:
    return f"{sum(is_safe):,} safe rows among {len(is_safe):,}"


def _curve(args: argparse.Namespace) -> "Figure":
    from curator.query.plots import loss_curve_of

    if args.run is None:
        raise BadInputError("plot curve needs --run DIR, a training run's folder")
    metrics = args.run / "metrics.jsonl" if args.run.is_dir() else args.run
    return loss_curve_of(metrics, title=args.title)


_KINDS: dict[str, Callable[[argparse.Namespace], "Figure"]] = {
    "gap": _gap,
    "plane": _plane,
    "gap-length": _gap_length,
    "length": _length,
    "agreement": _agreement,
    "ratio": _ratio,
    "curve": _curve,
    "before-after": _before_after,
}

_OF_GAPS = ("gap", "plane", "gap-length")
# Options that other kinds would leave aside in silence.
_ONLY_FOR = {
    "corpus": (*_OF_GAPS, "length", "agreement"),
    "by": ("gap",),
    "hold_out": _OF_GAPS,
    "aligned": (*_OF_GAPS, "agreement"),
    "top": _OF_GAPS,
    "mix": (*_OF_GAPS, "ratio"),
    "batch_size": ("ratio",),
    "run": ("curve",),
    "behaviour": ("before-after",),
}


def _corpus(args: argparse.Namespace) -> str:
    if args.corpus is None:
        raise BadInputError(f"plot {args.kind} needs --corpus NAME")
    return str(args.corpus)


def _named_rows(args: argparse.Namespace, query: str, **given: Any) -> list[dict[str, Any]]:
    """Rows of a named query over the corpus."""
    from curator.query.database import connect
    from curator.query.queries import run_named

    corpus = _corpus(args)
    with connect(open_store(args), [corpus]) as connection:
        rows: list[dict[str, Any]] = run_named(connection, query, {"corpus": corpus, **given}).table.to_pylist()
    return rows


def _gap_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one aligned scorer's gap; raises AmbiguousError where there are several and none is named."""
    from curator.query.scorers import aligned_scorer

    aligned = aligned_scorer(open_store(args), _corpus(args), args.aligned).scorer_id
    rows = _named_rows(args, "loss_plane", hold_out=args.hold_out, eps=args.eps)
    return [row for row in rows if row["aligned_id"] == aligned]


def _marked(args: argparse.Namespace, rows: list[dict[str, Any]]) -> set[str]:
    if args.mix is not None:
        import pyarrow.compute as pc

        from curator.mix.files import mix_batches

        found: set[str] = set()
        for batch in mix_batches(open_store(args), args.tenant, args.mix, columns=["origin", "corpus", "example_id"]):
            is_ours = pc.and_(pc.equal(batch["origin"], "safe"), pc.equal(batch["corpus"], args.corpus))
            found.update(batch["example_id"].filter(is_ours).to_pylist())
        if not found:
            raise BadInputError(f"mix {args.mix} has no safe row of corpus {args.corpus}")
        return found
    judged = [row for row in rows if row[args.score] is not None]
    ranked = sorted(judged, key=lambda row: (-row[args.score], row["example_id"]))
    return {row["example_id"] for row in ranked[: args.top or 0]}
