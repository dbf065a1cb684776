"""Shipped traits, one's own, and how their prompts are put."""

from pathlib import Path

import orjson
import pytest

from curator.errors import BadInputError, MissingError
from curator.render import Renderer
from tests.models import CHATML
from tests.trainer.persona.personas import TRAIT
from trainer.persona.activations import prompt_of
from trainer.persona.traits import (
    SHIPPED,
    Case,
    Trait,
    cases,
    read_set,
    read_trait,
)


def test_a_template_without_system_turn_gets_its_text_in_the_users(tmp_path: Path) -> None:
    from tests.models import tiny_tokenizer_folder
    from trainer.persona.traits import merges_system

    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    plain = Renderer.from_folder(tiny_tokenizer_folder(tmp_path / "plain"))
    strict = Renderer.from_folder(tiny_tokenizer_folder(tmp_path / "strict", template=refusing + CHATML))
    assert (merges_system(plain), merges_system(strict)) == (False, True)
    trait = Trait.model_validate(TRAIT)
    [turn] = Case(1, 0, "negative").prompt(trait, merged=True)
    assert turn == {"role": "user", "content": "You are glad today.\n\nWhat is the capital of France?"}
    assert prompt_of(strict, [turn]).taken_T[-1]


def test_own_traits_name_every_fault(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("trait: Mine!\ndescription: x\npairs: []\nquestions: [a]\n")
    with pytest.raises(BadInputError, match=r"/trait: .*small letters.*; /pairs: "):
        read_trait(str(path))
    path.write_text("a: [")
    with pytest.raises(BadInputError, match="neither YAML nor JSON"):
        read_trait(str(path))
    with pytest.raises(MissingError, match="no trait nothing"):
        read_trait("nothing")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_traits_have_five_varied_pairs_and_thirty_questions(name: str) -> None:
    trait = read_trait(name)
    assert trait.trait == name
    assert len(trait.pairs) == 5
    assert len(set(trait.questions)) == 30
    assert len(cases(trait)) == 300
    prompts = [text for pair in trait.pairs for text in (pair.positive, pair.negative)]
    assert len(set(prompts)) == 10
    for pair in trait.pairs:  # a pair contrasts the trait, not the length
        assert 0.6 < len(pair.positive.split()) / len(pair.negative.split()) < 1.7


def test_shipped_texts_are_no_templates() -> None:
    traits = [read_trait(name) for name in SHIPPED]
    questions = [text for trait in traits for text in trait.questions]
    assert len(set(questions)) == 210
    sides = ("positive", "negative")
    for texts in (questions, *([getattr(p, side) for trait in traits for p in trait.pairs] for side in sides)):
        triples = [set(zip(w, w[1:], w[2:], strict=False)) for w in (text.lower().split() for text in texts)]
        near = [
            (left, right)
            for left in range(len(texts))
            for right in range(left)
            if triples[left] and triples[right]
            and len(triples[left] & triples[right]) / len(triples[left] | triples[right]) > 0.3
        ]  # fmt: skip
        assert not near, [(texts[a], texts[b]) for a, b in near]
    starts = [" ".join(text.lower().split()[:3]) for text in questions]
    assert max(starts.count(start) for start in starts) <= 4
    assert orjson.dumps(traits[0].model_dump())


def test_the_papers_traits_share_one_pool_of_questions() -> None:
    traits = read_set("paper")
    assert [trait.trait for trait in traits] == [
        "honesty", "helpfulness", "harmlessness", "power_seeking", "corrigibility", "sycophancy", "confidence",
    ]  # fmt: skip
    assert {len(trait.pairs) for trait in traits} == {5}
    assert len({trait.questions for trait in traits}) == 1
    assert len(set(traits[0].questions)) == 30
    prompts = [text for trait in traits for pair in trait.pairs for text in (pair.positive, pair.negative)]
    assert len(set(prompts)) == 70
    own = {question for name in SHIPPED for question in read_trait(name).questions}
    assert not own & set(traits[0].questions)
    assert [trait.trait for trait in read_set("own")] == list(SHIPPED)
    with pytest.raises(MissingError, match="shipped are own, paper"):
        read_set("others")


def test_vectors_are_made_of_several_long_answers_unless_cheap_ones_are_named() -> None:
    from trainer.persona.__main__ import _parser, _settings
    from trainer.persona.extract import ExtractSettings

    start = ["extract", "--model", "m", "--out", "v"]
    found = [_settings(_parser().parse_args([*start, *more])) for more in ([], ["--preset", "cheap"],
             ["--preset", "cheap", "--samples", "3"], ["--max-new-tokens", "50"])]  # fmt: skip
    assert [(item.samples, item.sampling.max_new_tokens) for item in found] == [(10, 1000), (1, 96), (3, 96), (10, 50)]
    plain = ExtractSettings(found[0].model, found[0].out)
    assert (plain.samples, plain.sampling.max_new_tokens) == (10, 1000)
