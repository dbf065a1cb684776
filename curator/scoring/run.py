"""Scoring a corpus under one model: what is to do, part by part, and the manifest last.

Part files are written whole and named by their rows; scorer.json is rebuilt from the folder's listing when every
row is there. So a run may be killed at any moment: what is finished stays finished, and nothing counts twice.
"""

import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from curator.corpus import corpus_info
from curator.errors import BadInputError, ScoringError
from curator.progress import Progress
from curator.scoring.blocks import Block, blocks, corpus_ids, corpus_rows, without
from curator.scoring.engine import Engine
from curator.scoring.identity import Identity, measure_id, model_identity, model_window, scorer_id
from curator.scoring.outcome import ScoreRow, render_row, scored_row
from curator.scoring.parts import Finished, part_name, read_finished, write_part
from curator.scoring.request import ScoreReport, ScoreRequest
from curator.scoring.sample import Sample, choose, covers
from curator.store import Store

if TYPE_CHECKING:
    from curator.render import Rendered, Renderer

FORMAT_VERSION = 1
_MAX_ROUNDS = 4


def score_corpus(
    store: Store, request: ScoreRequest, renderer: "Renderer", engine_factory: Callable[[], Engine]
) -> ScoreReport:
    """Score what the corpus's current revision (or a sample of it) still lacks, and write scorer.json.

    `engine_factory` loads the model and is called only when a row has to be scored. Raises MissingError for an
    unknown corpus, BadInputError for a model that cannot be used, ScoringError when an engine fails.
    """
    run = _Run(store, request, renderer, engine_factory)
    return run.skip() or run.go()


class _Run:
    def __init__(
        self, store: Store, request: ScoreRequest, renderer: "Renderer", engine_factory: Callable[[], Engine]
    ) -> None:
        self.store, self.request, self.renderer = store, request, renderer
        self._engine_factory = engine_factory
        self._engine: Engine | None = None
        self.corpus = corpus_info(store, request.corpus)
        self.window, notes = _window(request)
        self.identity: Identity = model_identity(
            request.model_dir, request.adapter_dir, renderer, request.mask_rule, self.window,
            request.dtype, request.engine, request.engine_version,
        )  # fmt: skip
        self.id = scorer_id(self.identity)
        self.folder = f"scores/{request.corpus}/{self.id}"
        path = f"{self.folder}/scorer.json"
        self.manifest = store.read_json(path) if store.exists(path) else None
        self._check_role()
        self.report = ScoreReport(
            self.id, measure_id(self.identity), self._label(), request.role, request.domain, request.corpus,
            self.corpus.revision, request.dtype, self.window, warnings=notes,
        )  # fmt: skip

    def skip(self) -> ScoreReport | None:
        """The finished report when the manifest says that nothing is to do and its parts are there."""
        manifest = self.manifest
        if manifest is None or not manifest["complete"] or manifest["revision"] != self.corpus.revision:
            return None
        names = {part["name"] for part in manifest["parts"]}
        if not covers(manifest["sample"], self.request.sample) or not names <= set(self.store.list(self.folder)):
            return None
        if manifest["label"] != self.report.label:
            self.store.write_json(f"{self.folder}/scorer.json", {**manifest, "label": self.report.label})
        self.report.skipped = True
        self.report.n_rows, self.report.status_counts = manifest["n_rows"], manifest["status_counts"]
        return self.report

    def go(self) -> ScoreReport:
        """Score until every wanted row has a part; a part that turns out broken costs another round."""
        renderer_id = self.renderer.save(self.store)
        started = time.monotonic()
        wanted = self._wanted()
        finished = self._read_finished()
        for _ in range(_MAX_ROUNDS):
            n_missing = len(wanted - finished.ids)
            if not n_missing:
                break
            self._score_missing(wanted, finished, n_missing)
            finished = self._read_finished()
        else:
            raise ScoringError(f"{self.folder}: parts vanish or break as fast as they are written; see warnings")
        if self._engine is not None:
            self._engine.close()
        self.report.seconds_now = time.monotonic() - started
        self._publish(finished, renderer_id)
        return self.report

    def _wanted(self) -> frozenset[str]:
        sample = self.request.sample
        ids = corpus_ids(self.store, self.corpus)
        if sample is None:
            return frozenset(ids)
        chosen = self._chosen(ids, sample)
        if len(chosen) < sample.n:
            kind = "rows that can be scored" if sample.fit else "rows"
            self.report.warnings.append(f"sample of {sample.n} rows asked, the corpus has {len(chosen)} {kind}")
        return frozenset(chosen)

    def _chosen(self, ids: list[str], sample: Sample) -> list[str]:
        """The sample, kept under samples/: every model of one gap has the same, and finding it renders rows."""
        basis = {
            "revision": self.corpus.revision, "renderer_id": self.renderer.renderer_id, "window": self.window,
            "mask_rule": self.request.mask_rule, **sample.document(),
        }  # fmt: skip
        path = f"samples/{self.request.corpus}/{scorer_id(basis)}.json"
        if self.store.exists(path):
            return list(self.store.read_json(path)["ids"])
        chosen = choose(ids, sample, self._fitting)
        self.store.write_json(path, {**basis, "ids": chosen})
        return chosen

    def _fitting(self, ids: Collection[str]) -> list[str]:
        rows = corpus_rows(self.store, self.corpus, frozenset(ids))
        with Progress(len(ids), "rows", "choosing the sample") as bar:
            fit = []
            for example_id, messages in rows:
                row = self._render(example_id, messages)
                if not isinstance(row, ScoreRow):
                    fit.append(example_id)
                bar.advance()
        return fit

    def _score_missing(self, wanted: Collection[str], finished: Finished, n_missing: int) -> None:
        pieces = blocks(self.store, self.corpus, wanted, self.request.block_tokens, self.window)
        with Progress(n_missing, "rows", f"scoring {self.report.label}") as bar:
            for whole in pieces:
                block = without(whole, finished.ids)
                if not block.ids:
                    continue
                if not self.store.exists(f"{self.folder}/{part_name(block.ids)}"):  # else: a worker beside us
                    self._score_block(block, bar)

    def _score_block(self, block: Block, bar: Progress) -> None:
        started, n_before = time.monotonic(), self.report.n_tokens_now
        outcomes = [
            self._render(example_id, messages) for example_id, messages in zip(block.ids, block.messages, strict=True)
        ]
        rendered = [row for row in outcomes if not isinstance(row, ScoreRow)]
        bar.advance(len(outcomes) - len(rendered))

        def on_rows(n_rows: int, n_tokens: int) -> None:
            self.report.n_tokens_now += n_tokens
            rate = (self.report.n_tokens_now - n_before) / max(time.monotonic() - started, 1e-6)
            bar.advance(n_rows, tokens=f"{self.report.n_tokens_now:,}", tokens_per_s=f"{rate:,.0f}")

        losses = iter(self._loaded().score(rendered, on_rows) if rendered else [])
        rows = [
            row if isinstance(row, ScoreRow) else scored_row(example_id, row, next(losses))
            for example_id, row in zip(block.ids, outcomes, strict=True)
        ]
        write_part(self.store, self.folder, rows)
        self.report.n_rows_now += len(rows)

    def _render(self, example_id: str, messages: str) -> "Rendered | ScoreRow":
        return render_row(self.renderer, example_id, messages, self.request.mask_rule, self.window)

    def _loaded(self) -> Engine:
        if self._engine is None:
            engine = self._engine_factory()
            found = (engine.name, engine.version, engine.dtype)
            asked = (self.request.engine, self.request.engine_version, self.request.dtype)
            if found != asked:
                raise ScoringError(f"engine {found} loaded, the scorer's identity says {asked}")
            engine.use_adapter(self.request.adapter_dir)
            self._engine = engine
        return self._engine

    def _read_finished(self) -> Finished:
        recorded = {part["name"]: part["sha256"] for part in (self.manifest or {"parts": []})["parts"]}
        finished = read_finished(self.store, self.folder, recorded)
        self.report.warnings += [f"set aside and scored again: {item}" for item in finished.set_aside]
        return finished

    def _publish(self, finished: Finished, renderer_id: str) -> None:
        self.report.n_rows, self.report.status_counts = len(finished.ids), dict(finished.status_counts)
        sample, before = self.request.sample, self.manifest or {"seconds": 0.0}
        document = {
            "format_version": FORMAT_VERSION,
            "scorer_id": self.id,
            "measure_id": self.report.measure_id,
            "label": self.report.label,
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
            "n_tokens": finished.n_tokens,
            "seconds": round(before["seconds"] + self.report.seconds_now, 3),
        }
        self.store.write_json(f"{self.folder}/scorer.json", document)

    def _label(self) -> str:
        recorded = self.manifest["label"] if self.manifest else None
        default = (self.request.adapter_dir or self.request.model_dir).resolve().name
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


def _window(request: ScoreRequest) -> tuple[int, list[str]]:
    own = model_window(request.model_dir)
    if own is None or own >= request.max_length:
        return request.max_length, []
    return own, [f"max length {request.max_length} lowered to {own}, the model's own window"]
