import pytest

from curator.corpus.refusals import is_refusal

V1_REFUSALS = [
    "I'm sorry, but I can do nothing here",
    "SORRY! That is beyond me",
    "I apologize: this is not something I do",
    "As an AI language model, I cannot, in good faith",
    "Well — I’m **sorry**—no",
    "_Cannot_ do that",
    "'sorry' is all I have",
]
V2_ONLY = [
    "I can't do that",
    "I can’t do that",
    "I canʼt do that",
    "I'm unable to say",
    "I’m unable to say",
    "I’M UNABLE to say",
    "Alas, I am unable to say",
    "I am\n**unable** to say",
]
NO_REFUSALS = [
    "",
    "Here is the recipe you wanted",
    "You can not lose",  # the rule has the one word only
    "Apologies and apologized are other words",
    "Scannots are not a word, nor is sorryish",
    "I am able, and unable is the word you asked about",
    "one two three four five six seven eight nine ten sorry cannot",
    "one two three four five six seven eight nine i'm unable",
]


@pytest.mark.parametrize("head", V1_REFUSALS)
def test_v1_words_are_refusals_under_both_rules(head: str) -> None:
    assert is_refusal(head, "v1")
    assert is_refusal(head, "v2")


@pytest.mark.parametrize("head", V2_ONLY)
def test_v2_adds_contractions_and_phrases(head: str) -> None:
    assert not is_refusal(head, "v1")
    assert is_refusal(head, "v2")


@pytest.mark.parametrize("head", NO_REFUSALS)
def test_other_answers_stay(head: str) -> None:
    assert not is_refusal(head, "v1")
    assert not is_refusal(head, "v2")


def test_the_tenth_word_still_counts() -> None:
    assert is_refusal("one two three four five six seven eight nine sorry", "v1")
    assert is_refusal("one two three four five six seven eight i'm unable", "v2")
