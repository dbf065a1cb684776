"""Scoring a corpus under one model: what is to do, part by part, and the manifest last.

Part files are written whole and named by their rows; scorer.json is rebuilt from the folder's listing when every
row is there. So a run may be killed at any moment: what is finished stays finished, and nothing counts twice.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

from curator.console import Progress
from curator.corpus.manifest import read_corpus
from curator.errors import BadInputError, ScoringError
from curator.render.model_source import hub_spec, model_name
from curator.scoring import faults as attempts
from curator.scoring import shards
from curator.scoring.blocks import (
    Block,
    blocks,
    corpus_ids,
    corpus_rows,
    without,
)
from curator.scoring.check import n_check_rows
from curator.scoring.engines.base import Engine, ReferenceFactory
from curator.scoring.identity import measure_id, scorer_id
from curator.scoring.parts import (
    PATTERN,
    Finished,
    ScoreRow,
    read_finished,
    sweep_temporary,
)
from curator.scoring.recheck import recheck
from curator.scoring.request import Sample, ScoreReport, ScoreRequest, choose, covers, effective_window, identity_of
from curator.scoring.shards import Shard
from curator.scoring.worker import BlockDone, BlockScorer, LazyEngine, Meter, ScorerTask
from curator.store.store import Store

if TYPE_CHECKING:
    from curator.render import Renderer

FORMAT_VERSION = 1
_MAX_ROUNDS = 4
_MAX_SHOWN = 3
_LOCK_WAIT_S = 300.0  # longer than a lease that a dead process left in a bucket


class Workers(Protocol):
    """Who scores blocks: this process, or several."""

    def score(self, blocks: Iterable[Block]) -> Iterator[BlockDone]:
        """The outcome of each block, in any order; its part is already written."""

    def close(self) -> None:
        """End it and free its engines' memory."""


WorkersFactory = Callable[[BlockScorer], Workers]


def score_corpus(
    store: Store,
    request: ScoreRequest,
    renderer: "Renderer",
    engine_factory: Callable[[], Engine],
    reference_factory: ReferenceFactory | None = None,
    workers_factory: WorkersFactory | None = None,
) -> ScoreReport:
    """Score what the corpus's current revision (or a sample of it) still lacks, check it, and write scorer.json.

    `engine_factory` loads the model and is called only when a row has to be scored; `reference_factory` loads
    a second, plain computation for the check, and is None where the weights are not on this machine. `workers_factory`
    puts other processes to work; without it this one scores. Raises MissingError for an unknown corpus, BadInputError
    for a model that cannot be used, ScoringError when an engine fails or the check does.
    """
    run = ScoreRun(store, request, renderer, engine_factory, reference_factory, workers_factory)
    return run.skip() or run.go()


class _Alone:
    """This process as the only worker; progress counts rows as the engine finishes them.

    A block that another command is scoring is left for the end, so that two share the work.
    """

    def __init__(self, worker: BlockScorer) -> None:
        self._worker = worker

    def score(self, blocks: Iterable[Block]) -> Iterator[BlockDone]:
        taken: list[Block] = []
        for block in blocks:
            done = self._worker.score_unless_taken(block)
            if done is None:
                taken.append(block)
            else:
                yield done
        for block in taken:
            # Its part is there by now, or its scorer may have died elsewhere: waiting for it could be for ever.
            if not self._worker.has_part(block):
                yield self._worker.score(block)

    def close(self) -> None:
        """The engine stays for the check."""


class ScoreRun:
    """One request over one corpus: what its scorer is, what is there already, and the way to the rest."""

    def __init__(
        self,
        store: Store,
        request: ScoreRequest,
        renderer: "Renderer",
        engine_factory: Callable[[], Engine],
        reference_factory: ReferenceFactory | None = None,
        workers_factory: WorkersFactory | None = None,
    ) -> None:
        self.store, self.request, self.renderer = store, request, renderer
        self._reference_factory, self._workers_factory = reference_factory, workers_factory
        self._failures: list[str] = []
        self._dropped: Counter[str] = Counter()
        self._replaced: set[str] = set()  # parts set aside by this run: what was recorded of them no longer holds
        self.n_check_passes = 2 if reference_factory else 1
        self.corpus = read_corpus(store, request.corpus)
        self.window, notes = effective_window(request)
        self.identity = identity_of(request, renderer, self.window)
        self.id = scorer_id(self.identity)
        self.folder = f"scores/{request.corpus}/{self.id}"
        self.manifest = self._read_manifest()
        self._check_role()
        self.report = ScoreReport(
            self.id, measure_id(self.identity), self._label(), request.role, request.domain, request.corpus,
            self.corpus.revision, request.dtype, self.window, warnings=notes,
            shard=str(request.shard) if request.shard else None,
        )  # fmt: skip
        self.engine = LazyEngine(engine_factory, request)
        self._meter = Meter(request.price_per_hour)
        task = ScorerTask(self.folder, request, self.window)
        self.worker = BlockScorer(store, task, renderer, self.engine, self._meter)

    def skip(self) -> ScoreReport | None:
        """The finished report when nothing is to do: the manifest says so, its parts have the bytes it recorded."""
        manifest = self.manifest
        if not self._covered(manifest) or not self._whole(manifest["parts"]):
            return None
        if manifest["label"] != self.report.label:
            self.store.write_json(f"{self.folder}/scorer.json", {**manifest, "label": self.report.label})
        self.report.skipped = True
        self._report_rows(manifest)
        return self.report

    def _read_manifest(self) -> dict[str, Any] | None:
        path = f"{self.folder}/scorer.json"
        return self.store.read_json(path) if self.store.exists(path) else None

    def _covered(self, manifest: dict[str, Any] | None) -> TypeGuard[dict[str, Any]]:
        """Whether scorer.json holds every row of the request."""
        if manifest is None or not manifest["complete"] or manifest["revision"] != self.corpus.revision:
            return False
        return covers(manifest["sample"], self.request.sample)

    def _report_rows(self, manifest: Mapping[str, Any]) -> None:
        self.report.n_rows, self.report.status_counts = manifest["n_rows"], manifest["status_counts"]
        self.report.dropped = manifest.get("dropped", {})

    def _whole(self, parts: Iterable[Mapping[str, str]]) -> bool:
        there = set(self.store.list(self.folder))
        return all(
            part["name"] in there and self.store.sha256(f"{self.folder}/{part['name']}") == part["sha256"]
            for part in parts
        )

    def go(self) -> ScoreReport:
        """Score until every row of the request has a part, then check the new ones and list them.

        A shard lists nothing before the other shards' rows are scored and checked as well.
        """
        renderer_id = self.renderer.save(self.store)
        started = time.monotonic()
        sweep_temporary(self.store, self.folder)
        wanted = self._wanted()
        own = self._own(wanted)
        finished = self._read_finished()
        n_missing = len(own - finished.ids)
        if self.request.shard is None:
            self._note_left_over(wanted, finished)
        n_again = n_check_rows(self.request.check_rows, n_missing) * self.n_check_passes
        try:
            with Progress(n_missing + n_again, "rows", f"scoring {self.report.label}") as bar:
                self._meter.show(bar)
                finished = self._score_all(own, finished)
                self._note_failures()
                self._check_usable(finished, wanted)
                self.report.n_tokens_now = self._meter.n_tokens
                new = self._unchecked(finished, own if self.request.shard else None)
                if new or self.request.shard is None:
                    self.report.check = recheck(self.worker, self.corpus, new, self._reference_factory)
        finally:
            self.engine.close()
        self.report.seconds_now = time.monotonic() - started
        if self.request.shard is not None and new:
            self._record_shard(self.request.shard, finished, new)
        with self.store.lock(self.folder, wait_s=_LOCK_WAIT_S):  # each holds it for seconds
            self._publish(wanted, finished, renderer_id)
        return self.report

    def missing(self) -> frozenset[str]:
        """Ids of the request that have no row yet; for estimates: stores nothing."""
        wanted = self._own(self._wanted(keep=False))
        names = self.store.list(self.folder, PATTERN)
        done = {
            key
            for name in names
            for key in self.store.read_table(f"{self.folder}/{name}", ["example_id"])[0].to_pylist()
        }
        return wanted - done

    def _score_all(self, wanted: frozenset[str], finished: Finished) -> Finished:
        """A part that turns out broken when it is read back costs another round."""
        for _ in range(_MAX_ROUNDS):
            if wanted <= finished.ids:
                return finished
            workers = self._workers_factory(self.worker) if self._workers_factory else _Alone(self.worker)
            try:
                for done in workers.score(self._missing_blocks(wanted, finished)):
                    self.report.n_rows_now += done.n_rows
                    self._failures += done.failures
                    self._dropped.update(done.dropped)
                    if self._workers_factory:  # alone, the worker counts for itself
                        self._meter.rows(done.n_rows, done.n_tokens)
            finally:
                workers.close()
            finished = self._read_finished()
        raise ScoringError(f"{self.folder}: parts vanish or break as fast as they are written; see warnings")

    def _missing_blocks(self, wanted: frozenset[str], finished: Finished) -> Iterator[Block]:
        for whole in blocks(self.store, self.corpus, wanted, self.request.block_tokens, self.window):
            block = without(whole, finished.ids)
            if block.ids and not self.worker.has_part(block):  # one beside us may have written it
                yield block

    def _note_failures(self) -> None:
        failures = self._failures
        if failures:
            shown = "; ".join(failures[:_MAX_SHOWN])
            self.report.warnings.append(f"{len(failures)} rows have no loss and are marked failed: {shown}")

    def _check_usable(self, finished: Finished, wanted: frozenset[str]) -> None:
        """Raises BadInputError where all rows are there and not one has a loss: such a scorer is of no use."""
        counts = finished.status_counts
        if not counts or counts["scored"] or not wanted <= finished.ids:
            return
        stated = ", ".join(f"{name} {n:,}" for name, n in sorted(counts.items()))
        raise BadInputError(
            f"none of the {counts.total():,} rows of corpus {self.corpus.name} can be used with this model ({stated}); "
            f"first: {self._first_reason(finished)}"
        )

    def _first_reason(self, finished: Finished) -> str:
        """Why the first row has no loss, one that failed before those that are but too long."""
        found = ""
        for part in finished.parts:
            table = self.store.read_table(f"{self.folder}/{part['name']}", ["example_id", "status", "reason"])
            for row in table.to_pylist():
                found = found or f"{row['example_id']}: {row['reason']}"
                if row["status"] == "failed":
                    return f"{row['example_id']}: {row['reason']}"
        return found

    def _unchecked(self, finished: Finished, own: Collection[str] | None = None) -> list[str]:
        """Parts that neither scorer.json nor a shard's record names; only those that begin with an `own` row."""
        known = self._recorded()
        names = [part["name"] for part in finished.parts if part["name"] not in known]
        return [name for name in names if own is None or finished.first_ids.get(name) in own]

    def _recorded(self) -> dict[str, str]:
        """SHA-256 of the parts that scorer.json or the record of a shard names."""
        documents = [*([self.manifest] if self.manifest else []), *self._records()]
        found = {part["name"]: part["sha256"] for document in documents for part in document["parts"]}
        return {name: sha256 for name, sha256 in found.items() if name not in self._replaced}

    def _records(self) -> list[dict[str, Any]]:
        return shards.read_records(self.store, self.folder, (self.manifest or {"parts": []})["parts"])

    def _own(self, wanted: frozenset[str]) -> frozenset[str]:
        """The rows that this run scores: all that are wanted, or those of its shard."""
        shard = self.request.shard
        return shards.shard_ids(self.store, self.corpus, wanted, self.window, shard) if shard else wanted

    def _note_left_over(self, wanted: frozenset[str], finished: Finished) -> None:
        """Say, to whoever runs without a shard after shards, what these left undone."""
        for count in sorted({record["count"] for record in self._records()}):
            dealt = shards.deal(self.store, self.corpus, wanted, self.window, count)
            left = Counter(index for example_id, index in dealt if example_id not in finished.ids)
            if left:
                shown = ", ".join(f"{index}/{count} ({n:,} rows)" for index, n in sorted(left.items()))
                self.report.warnings.append(f"scored now, since these shards left rows undone: {shown}")

    def _record_shard(self, shard: Shard, finished: Finished, new: Collection[str]) -> None:
        record = {
            "revision": self.corpus.revision,
            "parts": [part for part in finished.parts if part["name"] in new],
            "check": {**(self.report.check or {}), "shard": str(shard)},
            "seconds": round(self.report.seconds_now, 3),
            "dropped": dict(self._dropped),
        }
        shards.write_record(self.store, self.folder, shard, record)

    def _wanted(self, keep: bool = True) -> frozenset[str]:
        sample = self.request.sample
        ids = corpus_ids(self.store, self.corpus)
        if sample is None:
            return frozenset(ids)
        chosen = self._chosen(ids, sample, keep)
        if len(chosen) < sample.n:
            kind = "rows that can be scored" if sample.fit else "rows"
            self.report.warnings.append(f"sample of {sample.n} rows asked, the corpus has {len(chosen)} {kind}")
        return frozenset(chosen)

    def _chosen(self, ids: list[str], sample: Sample, keep: bool) -> list[str]:
        """The sample, kept under samples/: every model of one gap has the same, and finding it renders rows."""
        basis = {
            "revision": self.corpus.revision, "renderer_id": self.renderer.renderer_id, "window": self.window,
            "mask_rule": self.request.mask_rule, **sample.document(),
        }  # fmt: skip
        path = f"samples/{self.request.corpus}/{scorer_id(basis)}.json"
        if self.store.exists(path):
            return list(self.store.read_json(path)["ids"])
        chosen = choose(ids, sample, self._fitting)
        if keep:
            self.store.write_json(path, {**basis, "ids": chosen})
        return chosen

    def _fitting(self, ids: Collection[str]) -> list[str]:
        rows = corpus_rows(self.store, self.corpus, frozenset(ids))
        with Progress(len(ids), "rows", "choosing the sample") as bar:
            fit = []
            for example_id, messages in rows:
                row = self.worker.render(example_id, messages)
                if not isinstance(row, ScoreRow):
                    fit.append(example_id)
                bar.advance()
        return fit

    def _read_finished(self) -> Finished:
        finished = read_finished(self.store, self.folder, self._recorded())
        self.report.warnings += [f"set aside and scored again: {item}" for item in finished.set_aside]
        self._replaced.update(item.partition(":")[0] for item in finished.set_aside)
        return finished

    def _publish(self, wanted: frozenset[str], finished: Finished, renderer_id: str) -> None:
        """List all parts in scorer.json, unless rows or checks of other shards are missing, or another run did."""
        before, self.manifest = self.manifest, self._read_manifest()
        if self.manifest != before and self._covered(self.manifest) and self._whole(self.manifest["parts"]):
            self._report_rows(self.manifest)
            return
        if self.request.shard is not None:
            finished = self._read_finished()
            self._check_usable(finished, wanted)
            if self._wait_for_others(self.request.shard, wanted, finished):
                return
        self.store.write_json(f"{self.folder}/scorer.json", self._document(finished, renderer_id))
        attempts.sweep(self.store, self.folder)
        shards.sweep(self.store, self.folder)

    def _wait_for_others(self, shard: Shard, wanted: frozenset[str], finished: Finished) -> bool:
        """Whether rows are missing or unchecked, which the report then says, with the shards that they belong to."""
        missing, unchecked = wanted - finished.ids, self._unchecked(finished)
        undone = missing.union(finished.first_ids[name] for name in unchecked if name in finished.first_ids)
        if not undone:
            return False
        dealt = shards.deal(self.store, self.corpus, wanted, self.window, shard.count)
        others = sorted({index for example_id, index in dealt if example_id in undone})
        report = self.report
        report.published, report.n_missing = False, len(missing)
        report.missing_shards = [str(Shard(index, shard.count)) for index in others]
        report.n_rows, report.status_counts = len(finished.ids), dict(finished.status_counts)
        report.dropped = dict(sorted(self._dropped.items()))
        return True

    def _document(self, finished: Finished, renderer_id: str) -> dict[str, Any]:
        """scorer.json of these parts: with what it said before, what shards recorded, and what this run did."""
        self.report.n_rows, self.report.status_counts = len(finished.ids), dict(finished.status_counts)
        sample, before, records = self.request.sample, self.manifest or {"seconds": 0.0}, self._records()
        if self.request.shard is None:
            own = {"check": self.report.check, "seconds": self.report.seconds_now, "dropped": self._dropped}
            records = [*records, own]
        dropped = Counter(before.get("dropped", {}))
        for record in records:
            dropped.update(record["dropped"])
        self.report.dropped = dict(sorted(dropped.items()))
        return {
            "format_version": FORMAT_VERSION,
            "scorer_id": self.id,
            "measure_id": self.report.measure_id,
            "label": self.report.label,
            "hub": hub_spec(self.request.model_dir),  # where it came from; what it is stands in the identity
            "role": self.request.role,
            "domain": self.request.domain,
            "identity": self.identity,
            "renderer_id": renderer_id,
            "corpus": self.request.corpus,
            "revision": self.corpus.revision,
            "sample": sample.document() if sample else None,
            "complete": True,
            "parts": finished.parts,
            "n_rows": len(finished.ids),
            "status_counts": dict(sorted(finished.status_counts.items())),
            "dropped": self.report.dropped,
            "n_tokens": finished.n_tokens,
            "seconds": round(before["seconds"] + sum(record["seconds"] for record in records), 3),
            "checks": [*before.get("checks", []), *(record["check"] for record in records)],
        }

    def _label(self) -> str:
        recorded = self.manifest["label"] if self.manifest else None
        default = model_name(self.request.adapter_dir or self.request.model_dir)
        return self.request.label or recorded or default

    def _check_role(self) -> None:
        if self.manifest is None:
            return
        recorded = (self.manifest["role"], self.manifest["domain"])
        if recorded != (self.request.role, self.request.domain):
            raise BadInputError(
                f"this model is recorded for corpus {self.request.corpus!r} as role {recorded[0]}, domain "
                f"{recorded[1]}; asked: role {self.request.role}, domain {self.request.domain}. One scorer has one "
                f"role: delete {self.folder} to give it another"
            )
