"""What the tokenizer of a small T5 can spell: words that it was made of, other words, other letters."""

import pytest

from imagen.text.encoder import unknown_characters
from imagen.text.pretrain import WIDE_SPELLING, train_tokenizer

TEXTS = ["a red circle above a blue square", "three green stars", "a small yellow ring on a navy background"]
UNSEEN = ["a zebra, quickly", "Über Łódź: café naïve Œuvre", "A_b & #1 ½ 100% [x] – “so” €5 ß"]


@pytest.mark.parametrize(
    "texts",
    [TEXTS, ["cat"], ["これは猫です", "犬が走る"], ["a 😀"], ["\t", "a"]],
    ids=["few", "one", "no spaces", "emoji", "blank"],
)
def test_a_tokenizer_is_made_of_however_few_captions_and_spells_what_they_lack(texts):
    made = train_tokenizer(texts, WIDE_SPELLING)
    for text in [*UNSEEN, *texts]:
        assert unknown_characters(made, text) == "", text
        assert made.unk_token_id not in made(text).input_ids
    assert unknown_characters(made, "a 山 and 🙂, and 🙂") == "山🙂"


def test_what_captions_are_too_blank_for_a_tokenizer_is_one_line():
    with pytest.raises(ValueError, match="^no tokenizer can be made of 2 captions: .*sentences") as caught:
        train_tokenizer(["", ""])
    assert "\n" not in str(caught.value)


def test_the_words_that_occur_most_are_pieces(monkeypatch):
    monkeypatch.setattr("imagen.text.pretrain.MAX_WORDS", 2)
    made = train_tokenizer(["zebra zebra zebra quokka quokka", "xylophone"])
    assert made.tokenize("zebra quokka") == ["▁zebra", "▁quokka"]
    assert len(made.tokenize("xylophone")) > 1
