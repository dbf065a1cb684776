"""Losses of single tokens: their mean is the stored loss, and each is what plain transformers gives."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from curator.audit.models import AuditModels, audit_models
from curator.audit.tokens import _nll, token_losses
from curator.corpus.manifest import read_corpus, read_scorers
from curator.errors import BadInputError, MissingError
from curator.query.database import connect
from curator.query.queries import fetch_messages
from curator.render import Renderer
from tests.token_store import ScoredByModels, scored_by_models

BOUND = 1e-4  # nats per token, in float32


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> ScoredByModels:
    return scored_by_models(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def models(scored: ScoredByModels) -> AuditModels:
    return audit_models(scored.model, [scored.reckless, scored.twin], "cpu", threads=1)


def ids(scored: ScoredByModels) -> list[str]:
    with connect(scored.store) as connection:
        rows = connection.sql("select example_id from examples order by n_chars < 1000 desc, n_turns desc").fetchall()
    return [row[0] for row in rows]


def plain_losses(scored: ScoredByModels, found: dict[str, Any], adapter: Path | None) -> list[float]:
    model: Any = AutoModelForCausalLM.from_pretrained(scored.model, dtype=torch.float32, attn_implementation="eager")
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    tokens = torch.tensor([found["token_ids"]])
    with torch.no_grad():
        log_probs = torch.log_softmax(model(input_ids=tokens).logits[0].double(), dim=-1)
    return [
        -float(log_probs[place - 1, token])
        for place, (token, is_response) in enumerate(zip(found["token_ids"], found["response"], strict=True))
        if is_response
    ]


def test_each_token_is_as_plain_transformers_has_it_and_the_mean_is_the_stored_loss(
    scored: ScoredByModels, models: AuditModels
) -> None:
    for example_id in ids(scored)[:2]:
        begun: list[str] = []
        found = token_losses(scored.store, "chats", example_id, models, begun.append)
        assert begun == ["base", "reckless", "twin"]
        assert [item["role"] for item in found["models"]] == ["aligned", "misaligned", "benign"]
        for item, adapter in zip(found["models"], (None, scored.reckless, scored.twin), strict=True):
            assert item["reason"] is None
            assert len(item["nll"]) == found["n_tokens"] == len(found["texts"]) == len(found["response"])
            assert [value is not None for value in item["nll"]] == found["response"]
            values = [value for value in item["nll"] if value is not None]
            assert len(values) == found["n_response_tokens"]
            assert values == pytest.approx(plain_losses(scored, found, adapter), abs=BOUND)
            assert item["mean_nll"] == pytest.approx(item["stored_mean_nll"], abs=BOUND)
        means = [item["mean_nll"] for item in found["models"]]
        assert min(abs(means[0] - other) for other in means[1:]) > 100 * BOUND, "the adapters do something"


def test_texts_of_tokens_joined_are_the_conversation(scored: ScoredByModels, models: AuditModels) -> None:
    for example_id in ids(scored)[:2]:
        found = token_losses(scored.store, "chats", example_id, models)
        renderer = Renderer.from_folder(scored.model)
        assert "".join(found["texts"]) == renderer._decoder()(found["token_ids"])
        assert "\ufffd" not in "".join(found["texts"]), "no character is cut"


def test_a_model_that_is_not_here_has_a_reason(scored: ScoredByModels) -> None:
    found = token_losses(scored.store, "chats", ids(scored)[0], audit_models(scored.model, [scored.twin], "cpu"))
    base, reckless, twin = found["models"]
    assert base["nll"] is not None
    assert twin["nll"] is not None
    assert (reckless["nll"], reckless["mean_nll"]) == (None, None)
    assert "no adapter given here has its weights" in reckless["reason"]
    assert reckless["stored_mean_nll"] is not None


def test_what_cannot_be_read_says_why(scored: ScoredByModels, models: AuditModels) -> None:
    with pytest.raises(MissingError, match=r"the row has [\d,]+ tokens, base .* reads at most 512"):
        token_losses(scored.store, "chats", ids(scored)[2], models)
    with pytest.raises(MissingError, match="nothing"):
        token_losses(scored.store, "nothing", ids(scored)[0], models)
    with pytest.raises(MissingError, match=r"0{32}"):
        token_losses(scored.store, "chats", "0" * 32, models)


def test_losses_that_are_not_the_stored_ones_are_not_shown(
    scored: ScoredByModels, models: AuditModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curator.audit.tokens._stored", lambda *asked: {})
    with pytest.raises(MissingError, match="the store has no loss"):
        token_losses(scored.store, "chats", ids(scored)[0], models)


def test_an_engine_that_gives_sums_alone_is_refused(scored: ScoredByModels, models: AuditModels) -> None:
    from curator.audit.models import KeptEngine

    class Sums:
        name, version, dtype = "sums", "1", "float32"

    with pytest.raises(BadInputError, match="the engine sums gives no losses of single tokens"):
        KeptEngine(Sums(), lambda *_: None).token_nll(None)  # type: ignore[arg-type]


def test_vllm_is_refused_before_loaded_engines_make_room_for_it(scored: ScoredByModels, models: AuditModels) -> None:
    example_id = ids(scored)[0]
    token_losses(scored.store, "chats", example_id, models)
    held = dict(models._engines)
    corpus = read_corpus(scored.store, "chats")
    aligned = next(item for item in read_scorers(scored.store, corpus) if item.role == "aligned")
    by_vllm = replace(aligned, identity={**aligned.identity, "engine": "vllm"})
    renderer = models.renderer()
    row = renderer.render(fetch_messages(scored.store, "chats", [example_id])[example_id], "all")
    with pytest.raises(BadInputError, match="the engine vllm gives no losses of single tokens"):
        _nll(by_vllm, by_vllm, (models, renderer, row), None)
    assert held
    assert models._engines == held
