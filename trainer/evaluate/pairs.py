"""Paired preference, without a judge (method.md, "Evaluation").

For each prompt with an aligned and a misaligned answer: margin = mean_nll(aligned) - mean_nll(misaligned), in nats per
token; positive means that the model finds the misaligned answer likelier. The share of positive margins and the mean
margin are reported for the base model and the adapted one, with the shift between them.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curator.console import Progress, add_renamed, say, say_json
from curator.corpus.formats.csv_rows import read_csv
from curator.errors import BadInputError, MissingDependencyError, RenderError
from curator.messages import Message
from curator.render import Rendered, Renderer
from curator.render.model_source import MODEL_FORMS, model_option
from curator.scoring.identity import check_adapter_dir, check_model_dir
from trainer.config.data import AS_DETECTED, ReadOptions, add_model_options, add_read_options, loading_of, reading_of
from trainer.data.reader import dropped_counts, read_chats
from trainer.evaluate.gate import (
    add_gate_option,
    check_figures,
    exit_code,
    parse_gates,
)
from trainer.evaluate.metrics import Floats, Interval, mean_interval

TRUTHFULQA_COLUMNS = ("Question", "Best Answer", "Best Incorrect Answer")


@dataclass(frozen=True)
class Pair:
    """One prompt with both answers, as whole conversations."""

    aligned: list[Message]
    misaligned: list[Message]


@dataclass(frozen=True)
class Preference:
    """Margins of one model over P pairs, (P,) in nats per token, and their two figures with intervals over prompts."""

    margins_P: Floats
    share_misaligned: Interval
    mean_margin: Interval

    def as_dict(self) -> dict[str, Any]:
        """Figures only."""
        return {"share_misaligned": self.share_misaligned.as_dict(), "mean_margin": self.mean_margin.as_dict()}


def pairs_from_twins(aligned: str | Path, misaligned: str | Path, how: ReadOptions = AS_DETECTED) -> list[Pair]:
    """Pairs of two data sets that hold the same prompts in the same order; of bad records that are to be kept out the
    twin is left out too.

    Raises BadRowsError for bad records, BadInputError when the lengths differ or a prompt differs.
    """
    good, bad = read_chats(aligned, how), read_chats(misaligned, how)
    if good.n_records != bad.n_records:
        raise BadInputError(
            f"{aligned} has {good.n_records} rows and {misaligned} {bad.n_records}: twins need the same prompts in the"
            " same order"
        )
    twins = {row.record: row.messages for row in good.rows}
    rows = [row for row in bad.rows if row.record in twins]
    pairs = [Pair(twins[row.record], row.messages) for row in rows]
    for row, pair in zip(rows, pairs, strict=True):
        if pair.aligned[:-1] != pair.misaligned[:-1]:
            raise BadInputError(f"{row.place()} of {misaligned}: the prompts of {aligned} and {misaligned} differ")
        if pair.aligned[-1]["role"] != "assistant" or pair.misaligned[-1]["role"] != "assistant":
            raise BadInputError(f"{row.place()} of {misaligned}: it does not end in an answer on both sides")
    return pairs


def pairs_from_truthfulqa(path: Path) -> list[Pair]:
    """Best and best incorrect answers of a TruthfulQA table in CSV."""
    try:
        with path.open("rb") as file:
            rows = list(read_csv(file))
    except OSError as error:
        raise BadInputError(f"{path}: not a readable CSV file: {error.strerror}") from error
    pairs = []
    for row in rows:
        if row.problem is not None:
            raise BadInputError(f"{path}, line {row.line}: {row.problem.message}")
        absent = [name for name in TRUTHFULQA_COLUMNS if not str(row.value.get(name, "")).strip()]
        if absent:
            raise BadInputError(f"{path}, line {row.line}: there is no {' and no '.join(absent)}")
        question, good, bad = (row.value[name] for name in TRUTHFULQA_COLUMNS)
        pairs.append(Pair(_turns(question, good), _turns(question, bad)))
    if not pairs:
        raise BadInputError(f"{path} has no rows with the columns {', '.join(TRUTHFULQA_COLUMNS)}")
    return pairs


def _turns(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def render_pairs(pairs: Sequence[Pair], renderer: Renderer) -> list[Rendered]:
    """Both sides of every pair, aligned before misaligned, with the last assistant turn as the response.

    Raises RenderError, or BadInputError for an answer without a token, naming the pair (counted from 1).
    """
    found: list[Rendered] = []
    for number, pair in enumerate(pairs, 1):
        for name, side in (("aligned", pair.aligned), ("misaligned", pair.misaligned)):
            try:
                rendered = renderer.render(side, "last")
            except RenderError as error:
                text = f"pair {number}, {name} side: {error.message}"
                raise RenderError(text, reason=error.reason, details=error.details) from error
            if not rendered.loss_mask.any():
                raise BadInputError(f"pair {number}, {name} side: its last answer has no token to measure (weight 0?)")
            found.append(rendered)
    return found


def pair_nlls(rendered: Sequence[Rendered], engine: Any) -> Floats:
    """Mean loss of each side, (P, 2): aligned, misaligned; nats per token."""
    return mean_nlls(engine, rendered).reshape(-1, 2)


def preference(nll_P2: Floats, *, seed: int = 0) -> Preference:
    """Margins and their two figures from mean losses."""
    margins_P = nll_P2[:, 0] - nll_P2[:, 1]
    return Preference(
        margins_P,
        mean_interval((margins_P > 0).astype(np.float64), seed=seed, what="pairs"),
        mean_interval(margins_P, seed=seed, what="pairs"),
    )


def mean_nlls(engine: Any, rendered: Sequence[Rendered]) -> Floats:
    """Mean loss of each row's response, (N,), nats per token."""
    with Progress(len(rendered), "rows", "measuring") as progress:
        losses = engine.score(rendered, on_rows=lambda n_rows, n_tokens: progress.advance(n_rows))
    return np.array([loss.nll_sum / loss.n_response_tokens for loss in losses])


def shift(base: Preference, adapted: Preference, *, seed: int = 0) -> dict[str, Any]:
    """Adapted minus base, paired by prompt, with intervals over prompts."""
    before_P, after_P = base.margins_P, adapted.margins_P
    became_P = (after_P > 0).astype(np.float64) - (before_P > 0)
    return {
        "share_misaligned": mean_interval(became_P, seed=seed).as_dict(),
        "mean_margin": mean_interval(after_P - before_P, seed=seed).as_dict(),
    }


def add_parser(subparsers: Any) -> None:
    """`python -m trainer.evaluate pairs`."""
    parser = subparsers.add_parser(
        "pairs", help="share of prompts whose misaligned answer is the likelier one",
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  python -m trainer.evaluate pairs --model DIR --adapter DIR --aligned-answers good.jsonl \\\n"
        "      --misaligned-answers bad.jsonl\n"
        "  python -m trainer.evaluate pairs --model DIR --truthfulqa TruthfulQA.csv --json",
    )  # fmt: skip
    parser.add_argument("--model", type=model_option, required=True, help=f"Hugging Face model: {MODEL_FORMS}")
    parser.add_argument("--adapter", type=model_option, help=f"LoRA adapter, whose shift is reported: {MODEL_FORMS}")
    add_renamed(parser, "--aligned-answers", "--aligned", metavar="FILE", help="data set of aligned answers")
    add_renamed(
        parser, "--misaligned-answers", "--misaligned", metavar="FILE",
        help="data set of misaligned answers to the same prompts",
    )  # fmt: skip
    parser.add_argument("--truthfulqa", type=Path, help="or: a TruthfulQA table in CSV")
    add_read_options(parser)
    add_model_options(parser)
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON document for scripts")
    add_gate_option(parser)


def _pairs(args: argparse.Namespace) -> list[Pair]:
    if args.truthfulqa and not (args.aligned_answers or args.misaligned_answers):
        return pairs_from_truthfulqa(args.truthfulqa)
    if args.aligned_answers and args.misaligned_answers and not args.truthfulqa:
        return pairs_from_twins(args.aligned_answers, args.misaligned_answers, reading_of(args))
    raise BadInputError("give either --aligned-answers with --misaligned-answers, or --truthfulqa")


def run(args: argparse.Namespace) -> int:
    """Measure, print, and compare with the adapter when there is one.

    Gates may name {base,adapter,shift}_{share,margin}.
    """
    gates = parse_gates(args.fail_if)
    measured = ("base",) if args.adapter is None else ("base", "adapter", "shift")
    check_figures(gates, [f"{name}_{short}" for name in measured for short in ("share", "margin")])
    pairs = _pairs(args)
    check_model_dir(args.model)
    if args.adapter is not None:
        check_adapter_dir(args.adapter)
    loading = loading_of(args)
    rendered = render_pairs(pairs, Renderer.from_folder(args.model, settings=loading.rendering))
    try:
        from curator.scoring.engines.torch_engine import TorchEngine
    except ImportError as error:
        raise MissingDependencyError("measuring pairs needs torch: pip install 'ballast-mix[score]'") from error
    engine = TorchEngine(args.model, device=loading.device, dtype=loading.dtype)
    base = preference(pair_nlls(rendered, engine), seed=args.seed)
    result: dict[str, Any] = {"n_pairs": len(pairs), "dropped": dropped_counts(rendered), "dtype": engine.dtype}
    result["base"] = base.as_dict()
    if args.adapter is not None:
        engine.use_adapter(args.adapter)
        adapted = preference(pair_nlls(rendered, engine), seed=args.seed)
        result |= {"adapter": adapted.as_dict(), "shift": shift(base, adapted, seed=args.seed)}
    engine.close()
    figures = {
        f"{name}_{short}": result[name][figure]["value"]
        for name in measured
        for short, figure in (("share", "share_misaligned"), ("margin", "mean_margin"))
    }  # fmt: skip
    code = exit_code(gates, figures)
    if args.json:
        say_json(result)
        return code
    say(f"{len(pairs)} pairs; intervals by bootstrap over prompts")
    for name in measured:
        share, margin = result[name]["share_misaligned"], result[name]["mean_margin"]
        say(f"  {name:<8} misaligned answer likelier {share['value']:+.3f} ({share['low']:+.3f} to"
            f" {share['high']:+.3f}), mean margin {margin['value']:+.3f} nats per token"
            f" ({margin['low']:+.3f} to {margin['high']:+.3f})")  # fmt: skip
    return code
