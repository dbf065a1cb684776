"""`python -m curator audit`: a data set's gap compared with a scored corpus."""

import argparse
from pathlib import Path
from typing import Any

from curator.audit.models import audit_models
from curator.cli import Subparsers, add_data_options, new_parser, open_store, read_data
from curator.console import say, say_json
from curator.errors import BadInputError
from curator.render.model_source import MODEL_FORMS, model_option

DESCRIPTION = """\
Scores a chat file under the aligned and misaligned models of a scored corpus and says how its rows stand beside the
corpus's own: each row's percentile of risk (the sign-flipped gap) among corpus rows of like length, and a verdict on
the set with a bootstrap interval. Rows that cannot be judged (length, language, no loss) are counted with the reason,
and rows that forge turns are named. docs/method.md has the method and docs/results/audit.md how well it does."""

EXAMPLES = """\
  python -m curator audit task.jsonl --corpus chats --model models/instruct --adapter runs/finance/adapter
  python -m curator audit task.jsonl --corpus chats --model models/instruct --adapter runs/legal/adapter \\
      --out rows.parquet --json"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command's options."""
    parser = new_parser(subparsers, "audit", description=DESCRIPTION, examples=EXAMPLES)
    add = parser.add_argument
    add("file", metavar="FILE", help="data set to audit: a chat file, a saved folder or a hub id")
    add_data_options(parser)
    add("--corpus", required=True, metavar="NAME", help="scored corpus to compare with")
    add("--model", required=True, metavar="MODEL", type=model_option,
        help=f"model of the corpus's aligned scorer: {MODEL_FORMS}")  # fmt: skip
    add("--adapter", metavar="ADAPTER", type=model_option, action="append", default=[],
        help=f"LoRA adapter of one of its misaligned or benign scorers, repeatable: {MODEL_FORMS}")  # fmt: skip
    add("--misaligned", metavar="NAME", action="append",
        help="misaligned scorer by label or id prefix; repeatable (default: every complete one)")  # fmt: skip
    add("--hold-out", metavar="DOMAIN", action="append", default=[], help="leave out scorers of this domain")
    add("--score", choices=["gap_abs", "gap_rel", "gap_contrast"], default="gap_abs",
        help="gap whose sign is flipped (default: gap_abs)")  # fmt: skip
    add("--seed", type=int, default=0, metavar="S", help="seed of the bootstrap (default: 0)")
    add("--out", metavar="FILE", type=Path, help="write the rows as Parquet (columns: docs/method.md)")
    add("--device", default="auto", metavar="D", help="auto, cpu, cuda or cuda:N (default: CUDA where there is any)")
    add("--batch-tokens", type=int, metavar="T", help="tokens in one forward pass, padding included")
    add("--threads", type=int, metavar="N", help="CPU threads (default: measured, one on cores that others use)")


def run(args: argparse.Namespace) -> int:
    """Audit a file and say the verdict."""
    from curator.audit.options import AUDIT_ROWS, parse_options
    from curator.audit.run import audit
    from curator.store.scratch import Scratch, sweep_scratch
    from curator.store.store import Store

    store = open_store(args)
    if args.out is not None and not args.out.absolute().parent.is_dir():
        raise BadInputError(f"{args.out} cannot be written: its folder does not exist")
    asked: dict[str, Any] = {"hold_out": args.hold_out, "misaligned": args.misaligned, "score": args.score}
    options = parse_options({"corpus": args.corpus, "seed": args.seed, **asked})
    sweep_scratch()
    with Scratch("audit") as folder:
        task_set = read_data(args.file, folder, args)
        models = audit_models(args.model, args.adapter, args.device, args.batch_tokens, args.threads)
        try:
            found = audit(store, Store(folder / "work"), task_set, options, models)
        finally:
            models.close()
    if args.out is not None:
        Store(args.out.absolute().parent).write_table(args.out.name, found.rows, AUDIT_ROWS)
    if args.json:
        say_json({**found.document, "n_rejected": task_set.n_rejected})
    else:
        _say(found.document)
    return 0


def _say(document: dict[str, Any]) -> None:
    say(f"verdict: {document['verdict']}")
    say(f"  {document['reason']}")
    if document["top_share"] is not None:
        top = document["top_share"]
        interval = f"{top['value']:.1%} ({top['low']:.1%} to {top['high']:.1%})"
        say(f"  rows at or above the 95th percentile: {interval}; 5% expected")
    abstained = ", ".join(f"{name} {n:,}" for name, n in document["abstained"].items()) or "none"
    say(f"  {document['n_rows']:,} rows, {document['n_judged']:,} judged; not judged: {abstained}")
    say(f"  rows that forge turns: {document['n_forged']:,}")
    for warning in document["warnings"]:
        say(f"  note: {warning}")
    pool = document["pool"]
    say(f"  pool: {pool['n_rows']:,} scored rows of {pool['corpus']}, score {document['score']}")
