"""`python -m curator status`: what a store holds, and the next command."""

import argparse
import shlex
from typing import Any

from curator.cli import Subparsers, default_store, new_parser, open_store
from curator.console import as_typed, say, say_json, text_table
from curator.corpus.manifest import PROBE_ENDING, Scorer, corpus_names, read_corpus, read_scorers
from curator.mix.files import stored_mixes
from curator.store.store import Store

DESCRIPTION = """\
Lists the corpora of a store with their scorers, the mixes of each tenant, and what to do next."""

EXAMPLES = """\
  python -m curator status
  python -m curator status --store s3://bucket/ballast --json"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command's options."""
    new_parser(subparsers, "status", description=DESCRIPTION, examples=EXAMPLES)


def run(args: argparse.Namespace) -> int:
    """Read the manifests and print."""
    store = open_store(args)
    corpora = [_corpus(store, name) for name in corpus_names(store)]
    mixes = stored_mixes(store)
    document = {"store": args.store, "corpora": corpora, "mixes": mixes, "next": _next(corpora, mixes, args.store)}
    if args.json:
        say_json(document)
        return 0
    say(f"store {args.store}")
    for corpus in corpora:
        say(f"\ncorpus {corpus['name']}: {corpus['n_examples']:,} conversations, revision {corpus['revision'][:12]}")
        if corpus["scorers"]:
            columns = ["label", "role", "domain", "rows", "complete", "scorer_id"]
            say(text_table(columns, corpus["scorers"]))
    for tenant, ids in mixes.items():
        shown = ", ".join(mix_id[:12] for mix_id in ids[:5]) + (", ..." if len(ids) > 5 else "")
        say(f"\n{len(ids):,} mix{'' if len(ids) == 1 else 'es'} of tenant {tenant}: {shown or 'none'}")
    say(f"\nnext: {document['next']}")
    return 0


def _corpus(store: Store, name: str) -> dict[str, Any]:
    corpus = read_corpus(store, name)
    scorers = [_scorer(item) for item in read_scorers(store, corpus)]
    return {"name": name, "n_examples": corpus.n_examples, "revision": corpus.revision, "scorers": scorers}


def _scorer(item: Scorer) -> dict[str, Any]:
    return {
        "label": item.label, "role": item.role, "domain": item.domain, "rows": item.n_rows,
        "complete": item.complete, "scorer_id": item.scorer_id,
    }  # fmt: skip


def say_next(args: argparse.Namespace, store: Store, corpus: str) -> None:
    """One line with the command that a corpus waits for after `ingest`, `score` or `import`.

    None for held-out misaligned answers: they are there to test a gap, and no mix should take them.
    """
    if not corpus.endswith(PROBE_ENDING):
        say(f"next: {_next([_corpus(store, corpus)], {}, args.store)}")


def _next(corpora: list[dict[str, Any]], mixes: dict[str, list[str]], address: str) -> str:
    """The first command that the store still waits for."""
    where = "" if address == default_store() else f" --store {shlex.quote(address)}"
    return as_typed(_waited_for(corpora, mixes) + where)


def _waited_for(corpora: list[dict[str, Any]], mixes: dict[str, list[str]]) -> str:
    corpora = [corpus for corpus in corpora if not corpus["name"].endswith(PROBE_ENDING)]
    if not corpora:
        return "python -m curator ingest FILES --corpus NAME"
    for corpus in corpora:
        name, found = corpus["name"], corpus["scorers"]
        for role, more in (("aligned", ""), ("misaligned", " --adapter DIR --domain NAME")):
            own = [item for item in found if item["role"] == role]
            if not own or not any(item["complete"] for item in own):
                return f"python -m curator score --corpus {name} --model DIR --role {role}{more}"
    ids = [mix_id for found in mixes.values() for mix_id in found]
    if not ids:
        return f"python -m curator mix TASKFILE --corpus {corpora[0]['name']}"
    return f"python -m trainer.sft --mix-id {ids[0] if len(ids) == 1 else 'ID'} --model DIR --out DIR"
