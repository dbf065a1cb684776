"""The losses of single tokens of one corpus row, under every scorer of the corpus that runs here.

In: a store, a corpus's row, and the models of a worker. Out: one document, in which each list of tokens has the length
of the rendered row. The row is rendered, and each model loaded and identified, as for an audit, so that the mean of a
scorer's token losses is the loss that the store has of it.
"""

from collections.abc import Callable
from typing import Any

from curator.audit.models import AuditModels, no_token_scores
from curator.corpus.manifest import Corpus, Scorer, read_corpus, read_scorers
from curator.errors import BadInputError, BallastError, MissingError, ScoringError
from curator.query.database import connect
from curator.query.queries import fetch_messages, run_named
from curator.render import Rendered, Renderer
from curator.scoring.check import row_bound
from curator.store.store import Store

OnModel = Callable[[str], None]  # called with the label of the scorer whose model comes next


def token_losses(
    store: Store, corpus: str, example_id: str, models: AuditModels, on_model: OnModel = lambda label: None
) -> dict[str, Any]:
    """Token losses of a row: its tokens, and for each scorer their losses or the reason why there are none.

    `nll` has one value in nats for each token, null for one that is not a response token; it is null where the model
    does not run here. `mean_nll` is their mean, in nats per token, `stored_mean_nll` what the store has.

    Raises MissingError for an unknown corpus or row and where no scorer's model runs here, BadInputError without a
    complete aligned scorer.
    """
    found = read_corpus(store, corpus)
    scorers = sorted(
        (item for item in read_scorers(store, found) if item.complete),
        key=lambda item: (("aligned", "misaligned", "benign").index(item.role), item.label, item.scorer_id),
    )
    aligned = next((item for item in scorers if item.role == "aligned"), None)
    if aligned is None:
        raise BadInputError(f"corpus {corpus} has no finished aligned scorer, whose tokenizer cuts the row")
    messages = fetch_messages(store, corpus, [example_id])[example_id]
    renderer = models.renderer(Renderer.from_store(store, aligned.renderer_id).settings)
    row = renderer.render(messages, aligned.identity["mask_rule"])
    stored = _stored(store, found, example_id)
    shown = []
    for scorer in scorers:
        on_model(scorer.label)
        shown.append(_under(scorer, aligned, (models, renderer, row), stored.get(scorer.scorer_id)))
    if all(item["nll"] is None for item in shown):
        raise MissingError(f"no model of corpus {corpus} gives losses here: {shown[0]['reason']}")
    return {
        "corpus": corpus,
        "revision": found.revision,
        "example_id": example_id,
        "n_tokens": row.n_tokens,
        "n_response_tokens": row.n_response_tokens,
        "token_ids": row.input_ids.tolist(),
        "texts": renderer.token_texts(row),
        "response": _is_scored(row),
        "models": shown,
    }


def _stored(store: Store, corpus: Corpus, example_id: str) -> dict[str, float | None]:
    """Mean loss by scorer, as the store has it."""
    with connect(store, {corpus.name: corpus.revision}) as connection:
        rows = run_named(connection, "row_losses", {"corpus": corpus.name, "id": example_id}).table.to_pylist()
    return {row["scorer_id"]: row["mean_nll"] for row in rows}


def _is_scored(row: Rendered) -> list[bool]:
    """Whether each token has a loss: the first of a row never does."""
    return [False, *row.loss_mask.tolist()]


def _under(
    scorer: Scorer, aligned: Scorer, here: tuple[AuditModels, Renderer, Rendered], stored: float | None
) -> dict[str, Any]:
    shown: dict[str, Any] = {"scorer_id": scorer.scorer_id, "label": scorer.label, "role": scorer.role}
    shown |= {"domain": scorer.domain, "stored_mean_nll": stored, "mean_nll": None, "nll": None, "reason": None}
    try:
        nll = _nll(scorer, aligned, here, stored)
    except BallastError as error:
        return {**shown, "reason": error.message}
    values = iter(nll)
    return {
        **shown,
        "mean_nll": sum(nll) / len(nll),
        "nll": [next(values) if scored else None for scored in _is_scored(here[2])],
    }


def _nll(
    scorer: Scorer, aligned: Scorer, here: tuple[AuditModels, Renderer, Rendered], stored: float | None
) -> list[float]:
    models, renderer, row = here
    said = scorer.identity
    if (scorer.renderer_id, said["mask_rule"]) != (aligned.renderer_id, aligned.identity["mask_rule"]):
        raise BadInputError(f"scorer {scorer.shown} reads other tokens than {aligned.shown}")
    if not row.n_response_tokens:
        raise ScoringError("the row has no response token")
    if row.n_tokens > said["max_length"]:
        raise ScoringError(f"the row has {row.n_tokens:,} tokens, {scorer.shown} reads at most {said['max_length']:,}")
    if said["engine"] == "vllm":  # before the engines that are loaded make room for it
        raise no_token_scores(said["engine"])
    adapter = models.adapter_of(scorer, renderer)
    engine = models.engine(models.launch(said, adapter), lambda n_rows, n_tokens: None)
    engine.use_adapter(adapter)
    nll: list[float] = engine.token_nll(row).tolist()
    mean = sum(nll) / len(nll)
    if stored is None or not abs(mean - stored) <= row_bound(engine.dtype, len(nll)):
        kept = "no loss" if stored is None else f"{stored:.6f}"
        raise ScoringError(f"the tokens' mean is {mean:.6f} nats, the store has {kept}: score the corpus again")
    return nll
