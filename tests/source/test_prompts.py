"""Questions and pictures as model inputs: padded on the left, begun once, and refused by name."""

from __future__ import annotations

import pytest
import torch
from standin import standin

from keepsight import NoImageTokens
from keepsight.demo.model import PROMPT, load
from keepsight.demo.world import scene, scenes
from keepsight.source.prompts import BadPrompt, prepare, prepare_conversation

PICTURE = scene("test-shifted", 1).image()


def test_prompts_are_padded_on_the_left() -> None:
    _, processor = standin()
    inputs = prepare(processor, [scene.image() for scene in scenes("val", 2)], PROMPT)
    assert inputs["pixel_values"].shape == (2, 3, 128, 128)
    assert torch.equal(inputs["input_ids"][0], inputs["input_ids"][1])
    assert inputs["attention_mask"].all()


def test_a_template_that_writes_the_first_token_does_not_get_two() -> None:
    _, processor = standin()
    picture = scenes("val", 1)[0].image()
    plain = prepare(processor, [picture], PROMPT)["input_ids"]
    processor.chat_template = "{{ bos_token }} " + processor.chat_template
    written = prepare(processor, [picture], PROMPT)["input_ids"]
    begin = processor.tokenizer.bos_token_id
    assert (written == begin).sum() == 1
    assert (plain == begin).sum() <= 1


def test_a_processor_that_says_nothing_about_a_missing_picture_is_watched() -> None:
    _, processor = standin()

    class Lenient:
        chat_template = "x"
        tokenizer, image_token, image_token_id = processor.tokenizer, "<image>", processor.image_token_id

        def apply_chat_template(self, conversation: object, **options: object) -> str:
            return "cat dog"

        def __call__(self, text: list[str], images: object, **options: object) -> object:
            return processor.tokenizer(text, **options)

    with pytest.raises(NoImageTokens, match="write <image> into it"):
        prepare(Lenient(), [scenes("val", 1)[0].image()], PROMPT)


def test_a_prompt_with_too_many_pictures_is_refused() -> None:
    _, processor = standin()
    # What the processor says besides depends on the release of transformers
    with pytest.raises(BadPrompt, match="refuses the prompt '<image> <image> what\\?'"):
        prepare(processor, [scenes("val", 1)[0].image()], "<image> <image> what?", raw=True)


def test_a_conversation_repeats_what_was_said_after_one_picture() -> None:
    _, processor = load()
    alone = prepare_conversation(processor, PICTURE, [], PROMPT)
    assert torch.equal(alone["input_ids"], prepare(processor, [PICTURE], PROMPT)["input_ids"])
    said = [(PROMPT, "A kitchen.")]
    ids = prepare_conversation(processor, PICTURE, said, "Is there a cup?")["input_ids"][0]
    text = processor.tokenizer.decode(ids, skip_special_tokens=True)
    assert text == f"USER: \n{PROMPT} ASSISTANT: A kitchen.USER: Is there a cup? ASSISTANT:"
    assert (ids == processor.image_token_id).sum() == (alone["input_ids"] == processor.image_token_id).sum()


def test_a_template_without_conversations_refuses_by_name() -> None:
    _, processor = load()
    processor.chat_template = (
        "{% if messages|length > 1 %}{{ raise_exception('one turn\nonly') }}{% endif %}<image> Q"
    )
    prepare_conversation(processor, PICTURE, [], "Q")
    with pytest.raises(BadPrompt, match=r"refuses the conversation: one turn$"):
        prepare_conversation(processor, PICTURE, [("Q", "A")], "Q")
