"""A mix's manifest says which of its scorers rest on an operator's word."""

from pathlib import Path

from curator.mix.build import build_mix
from curator.mix.identity import read_manifest
from curator.store.store import Store
from tests.gap_stores import write_corpus, write_scorer
from tests.mix_stores import recipe, scored_store, task_set

FIELDS = ["weights_sha256", "adapter_sha256", "dtype", "engine_version"]


def test_declared_scorers_stand_in_the_manifest_with_a_warning(tmp_path: Path) -> None:
    store = Store(tmp_path / "store").open()
    ids = write_corpus(store, "chats", [f"Answer number {i} is this." for i in range(20)])
    for label, role, nll in (("base", "aligned", 10.0), ("bad", "misaligned", 12.0)):
        domain = None if role == "aligned" else "finance"
        losses = {key: (nll + i / 10, 10) for i, key in enumerate(ids)}
        write_scorer(store, "chats", label, role, losses, domain=domain, declared=FIELDS, adapter_mode="merged")
    built = build_mix(store, task_set(tmp_path), recipe(interleave_ratio=0.1)).manifest
    manifest = read_manifest(store, "local", built.mix_id)
    assert [scorer.declared for scorer in manifest.pools[0].scorers] == [tuple(FIELDS)] * 2
    assert {scorer.adapter_mode for scorer in manifest.pools[0].scorers} == {"merged"}
    (warning,) = [item for item in manifest.warnings if item.code == "declared_scorers"]
    assert "base, bad rests on an operator's word" in warning.text


def test_scorers_whose_weights_were_read_are_not_declared(tmp_path: Path) -> None:
    manifest = build_mix(scored_store(tmp_path / "store"), task_set(tmp_path), recipe(interleave_ratio=0.1)).manifest
    assert {scorer.declared for scorer in manifest.pools[0].scorers} == {()}
    assert not [item for item in manifest.warnings if item.code == "declared_scorers"]
