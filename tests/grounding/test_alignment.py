"""Which tokens write which letters, held against the offsets that fast tokenizers report while they encode."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from keepsight.demo.model import build_tokenizer
from keepsight.grounding.alignment import (
    BadNoun,
    CannotTokenize,
    Found,
    Nouns,
    answer_ids,
    object_words,
    token_letters,
    word_tokens,
)

CORPUS = [
    "A kitchen with an oven, a refrigerator and two potted plants.",
    "A café near the traffic light. There is also a dog's frisbee!",
    "USER: describe the image ASSISTANT: a person on a bench",
]
TEXTS = [
    *CORPUS,
    "Zwölf Bänke – über dem Fluß; 猫 and 🐕‍🦺 sit on a naïve couch.",
    "two  dogs\nand a\tcat",
    "ünder the é é, élan",
    "🐕🐕",
]


def sentencepiece() -> Any:
    """As Llama's: spaces are ▁, unknown letters are bytes, the first space is dropped when decoding."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    model = Tokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(pieces)},
            [tuple(pair) for pair in learned["merges"]],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    model.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    model.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=model, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def unigram() -> Any:
    """As T5's and Gemma's: pieces of one language model, spaces are ▁."""
    model = Tokenizer(models.Unigram())
    model.pre_tokenizer = pre_tokenizers.Metaspace()
    model.decoder = decoders.Metaspace()
    alphabet = sorted({letter for text in TEXTS for letter in text})
    trainer = trainers.UnigramTrainer(
        vocab_size=200,
        special_tokens=["<unk>", "</s>"],
        unk_token="<unk>",
        initial_alphabet=alphabet,
        show_progress=False,
    )
    model.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>", eos_token="</s>")


def byte_level() -> Any:
    return build_tokenizer(CORPUS)


BUILT = {maker.__name__: maker() for maker in (byte_level, sentencepiece, unigram)}
tokenizers = pytest.mark.parametrize("name", BUILT)


def encode(name: str, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    found = BUILT[name](text, add_special_tokens=False, return_offsets_mapping=True)
    return found["input_ids"], found["offset_mapping"]


def spelling(spans: list[tuple[int, int]], text: str) -> dict[int, set[int]]:
    """For every letter that is not white space, the tokens that write it."""
    return {
        at: set(word_tokens(spans, (at, at + 1))) for at, letter in enumerate(text) if not letter.isspace()
    }


def reference(name: str, ids: list[int], offsets: list[tuple[int, int]], text: str) -> dict[int, set[int]]:
    """As ``spelling``, from the offsets; there a lone space at the start counts as the first letter's, which it is not."""
    pieces = BUILT[name].convert_ids_to_tokens(ids)
    lead = len(text) - len(text.lstrip())
    shifted = [
        (0, 0) if piece.strip("▁") == "" else (start - lead, end - lead)
        for piece, (start, end) in zip(pieces, offsets, strict=True)
    ]
    return spelling(shifted, text.strip())


@pytest.mark.parametrize(
    ("name", "text"),
    [(name, text) for name in BUILT for text in TEXTS if not (name == "unigram" and "\t" in text)],
)
def test_letters_are_those_of_the_offsets(name: str, text: str) -> None:
    ids, offsets = encode(name, text)
    read, spans = token_letters(BUILT[name], ids)
    assert read == text
    assert spelling(spans, text) == reference(name, ids, offsets, text)


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=st.text(alphabet="ab é猫🐕.,’", min_size=1, max_size=12))
def test_every_letter_is_written_by_someone(name: str, text: str) -> None:
    ids, offsets = encode(name, text)
    read, spans = token_letters(BUILT[name], ids)
    assert read == text.strip()
    assert all(0 <= start <= end <= len(read) for start, end in spans)
    assert [start for start, _ in spans] == sorted(start for start, _ in spans)
    assert spelling(spans, read) == reference(name, ids, offsets, text)


@tokenizers
def test_end_marks_write_nothing(name: str) -> None:
    tokenizer = BUILT[name]
    ids, _ = encode(name, "A dog")
    end = tokenizer.eos_token_id
    text, spans = token_letters(tokenizer, [*ids, end, end])
    assert text == "A dog"
    assert [start == stop for start, stop in spans[-2:]] == [True, True]
    assert token_letters(tokenizer, [*ids, end, end])[1][: len(ids)] == token_letters(tokenizer, ids)[1]


def test_half_a_letter_belongs_to_the_word_it_begins() -> None:
    ids, _ = encode("byte_level", "a 猫")
    text, spans = token_letters(BUILT["byte_level"], ids)
    own = word_tokens(spans, (2, 3))
    assert text == "a 猫"
    assert len(own) >= 3
    assert own[-1] == len(ids) - 1


def test_a_text_that_stops_within_a_letter() -> None:
    ids, _ = encode("byte_level", "a 猫")
    text, spans = token_letters(BUILT["byte_level"], ids[:-1])
    assert text.startswith("a ")
    assert spans[-1][1] <= len(text)


@pytest.mark.parametrize(
    ("word", "numbers"),
    [((0, 2), (0,)), ((1, 3), (0, 1)), ((3, 5), (1, 3)), ((2, 5), (1, 3)), ((5, 6), ())],
)
def test_word_tokens(word: tuple[int, int], numbers: tuple[int, ...]) -> None:
    assert word_tokens([(0, 2), (2, 4), (4, 4), (4, 5)], word) == numbers


class TestAnswerIds:
    TEMPLATE = (
        "{% for m in messages %}{{ m['role'] | upper + ': ' }}"
        "{% for part in m['content'] if part['type'] == 'text' %}{{ part['text'] }} {% endfor %}"
        "{{ eos_token if m['role'] == 'assistant' else '' }}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )

    def processor(self, name: str, template: str | None = None) -> Any:
        tokenizer = BUILT[name]

        def apply(messages: Any, add_generation_prompt: bool = False) -> str:
            return str(
                tokenizer.apply_chat_template(
                    messages,
                    chat_template=template or self.TEMPLATE,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                )
            )

        return SimpleNamespace(tokenizer=tokenizer, apply_chat_template=apply)

    @tokenizers
    def test_what_the_template_writes_between_is_kept(self, name: str) -> None:
        ids = answer_ids(self.processor(name), "describe", "A dog.")
        whole, _ = encode(name, "USER: describe ASSISTANT: A dog.")
        assert ids == whole[-len(ids) :]
        assert BUILT[name].decode(ids).strip() == "A dog."
        assert token_letters(BUILT[name], ids)[0] == "A dog."

    @tokenizers
    def test_without_a_template_one_space(self, name: str) -> None:
        processor = self.processor(name)
        ids = answer_ids(processor, "describe ASSISTANT:", "a person", raw=True)
        assert ids == encode(name, "describe ASSISTANT: a person")[0][-len(ids) :]
        assert ids == answer_ids(processor, "describe ASSISTANT:", " a person", raw=True)

    def test_a_prompt_that_ends_in_white_space_gets_no_second_one(self) -> None:
        ids = answer_ids(self.processor("byte_level"), "describe\n", "a person", raw=True)
        assert BUILT["byte_level"].decode(ids) == "a person"

    def test_a_token_that_would_reach_over_the_seam(self) -> None:
        # " a" is one token of the whole, but the prompt has its space already
        ids = answer_ids(self.processor("byte_level"), "describe ", "a person", raw=True)
        assert BUILT["byte_level"].decode(ids) == "a person"
        assert ids == encode("byte_level", "a person")[0]

    @pytest.mark.parametrize("finished", ["Z", "{{ raise_exception('no') }}"])
    def test_a_template_whose_answers_do_not_continue_its_prompts(self, finished: str) -> None:
        template = "{% if add_generation_prompt %}Q:{% else %}" + finished + "{% endif %}"
        ids = answer_ids(self.processor("byte_level", template), "describe", "A dog")
        assert BUILT["byte_level"].decode(ids) == " A dog"

    def test_what_cannot_be_written_is_refused(self) -> None:
        for text in ("", "  \n"):
            with pytest.raises(ValueError, match="empty"):
                answer_ids(self.processor("unigram"), "describe", text)
        with pytest.raises(CannotTokenize, match="leave out"):
            answer_ids(self.processor("unigram"), "describe", "a Я dog")


class TestNouns:
    def test_number_case_and_length(self) -> None:
        nouns = Nouns.of(["fire truck", "truck", "dining room table", " wolf ", ""])
        text = "Wolves by a Fire trucks' dining room table, trucks"
        assert [(one.word, one.object) for one in nouns.find(text)] == [
            ("Wolves", "wolf"),
            ("Fire trucks", "fire truck"),
            ("dining room table", "dining room table"),
            ("trucks", "truck"),
        ]
        assert all(text[slice(*one.span)] == one.word for one in nouns.find(text))

    def test_parts_alone_are_not_the_noun(self) -> None:
        assert Nouns.of(["fire truck"]).find("a fire, a truck; fire-truck firetruck") == ()
        assert Nouns.of(["dog"]).find("") == ()

    @pytest.mark.parametrize("nouns", [[], [""], ["nouns.txt"], ["-"], ["a\nb"]])
    def test_what_is_no_noun_is_refused(self, nouns: list[str]) -> None:
        with pytest.raises(BadNoun):
            Nouns.of(nouns)

    def test_coco_by_default(self) -> None:
        assert object_words("Two kittens on a sofa, a unicorn.") == (
            Found("kittens", "cat", (4, 11)),
            Found("sofa", "couch", (17, 21)),
        )
        assert object_words("a unicorn", Nouns.of(["unicorn"])) == (Found("unicorn", "unicorn", (2, 9)),)
