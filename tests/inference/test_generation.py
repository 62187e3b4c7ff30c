from __future__ import annotations

import pytest
import torch
from standin import standin

from keepsight import VCD, InvalidParameter
from keepsight.demo.world import scenes
from keepsight.inference.generation import Generation, answer
from keepsight.source.prompts import prepare

PROMPT = "Describe this image."
SHORT = Generation(max_new_tokens=10)
STRONG = VCD(alpha=3.0, beta=0.0, noise_step=999)


def texts(count: int, *methods: VCD | str, batch: int = 1, generation: Generation = SHORT) -> list[str]:
    model, processor = standin()
    shown = [scene.image() for scene in scenes("val", count)]
    said = answer(model, processor, shown, PROMPT, *methods, batch=batch, generation=generation)
    return [text for answers in said for text in answers.texts]


@pytest.mark.parametrize(
    "method", [(), (STRONG,), ("m3id:decay=1.0,cutoff=0.0",)], ids=["plain", "vcd", "m3id"]
)
def test_a_batch_says_what_its_pictures_say_alone(method: tuple[VCD | str, ...]) -> None:
    assert texts(5, *method, batch=2) == texts(5, *method)


def test_batches_come_as_they_are_done_and_leave_the_model_alone() -> None:
    model, processor = standin()
    served: list[int] = []

    def pictures():  # type: ignore[no-untyped-def]
        for i, scene in enumerate(scenes("val", 5)):
            served.append(i)
            yield scene.image()

    said = answer(model, processor, pictures(), PROMPT, STRONG, batch=2, generation=SHORT)
    sizes = []
    for answers in said:
        assert "generate" not in vars(model)
        assert len(served) == sum(sizes) + len(answers.texts)
        assert 0 < answers.tokens <= 10 * len(answers.texts)
        assert answers.seconds > 0
        sizes.append(len(answers.texts))
    assert sizes == [2, 2, 1]


def test_tokens_count_the_end_mark_and_no_padding() -> None:
    model, processor = standin()
    end, pad = model.generation_config.eos_token_id, model.generation_config.pad_token_id
    rows = iter([[7, 8, end, pad, pad], [7, 8, 9, 10, 11]])

    def generate(input_ids: torch.Tensor, logits_processor: object = None, **kwargs: object) -> torch.Tensor:
        return torch.cat([input_ids, torch.tensor([next(rows) for _ in input_ids])], 1)

    model.generate = generate
    shown = [scene.image() for scene in scenes("val", 2)]
    (said,) = answer(model, processor, shown, PROMPT, batch=2)
    assert said.tokens == 3 + 5


def test_sampling_draws_from_all_tokens_unless_told_otherwise() -> None:
    assert Generation().arguments() == {"max_new_tokens": 128, "num_beams": 1, "do_sample": False}
    drawn = Generation(sample=True, top_p=0.9).arguments()
    assert (drawn["do_sample"], drawn["temperature"], drawn["top_p"], drawn["top_k"]) == (True, 1.0, 0.9, 0)


@pytest.mark.parametrize(
    "options",
    [{"max_new_tokens": 0}, {"num_beams": 0}, {"temperature": 1.0}, {"sample": True, "temperature": float("inf")},
     {"sample": True, "top_p": 0.0}],
)  # fmt: skip
def test_generation_refuses(options: dict[str, float]) -> None:
    with pytest.raises(InvalidParameter):
        Generation(**options)  # type: ignore[arg-type]


def test_pictures_of_other_sizes_are_padded_on_the_left() -> None:
    """LLaVA-NeXT cuts a picture into as many tiles as it needs, so prompts of one batch differ in length."""
    import transformers as tf
    from standin import tokenizer_of
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    words = ("user", "what", *(f"w{i}" for i in range(40)))
    tokenizer = tokenizer_of(words)
    tiles = [[16, 16], [16, 32], [32, 16], [32, 32]]
    processor = tf.LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_grid_pinpoints=tiles
        ),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="{% for m in messages %}user <image> {{ m.content[1].text }}{% endfor %}",
    )
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = tf.LlavaNextConfig(
        text_config=tf.LlamaConfig(vocab_size=len(tokenizer), **small, **ids),
        vision_config=tf.CLIPVisionConfig(image_size=16, patch_size=8, projection_dim=32, **small),
        image_token_index=3,
        image_grid_pinpoints=tiles,
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    model = tf.LlavaNextForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.update(**ids)
    shown = [scenes("val", 1)[0].image().resize(size) for size in ((16, 16), (31, 30), (32, 16))]

    mask = prepare(processor, shown, "what")["attention_mask"]
    assert len(set(mask.sum(-1).tolist())) == 3
    assert mask[:, -1].all()
    said = {}
    for specs in ((), ("vcd:alpha=3.0,beta=0.0,noise_step=999",), ("m3id:decay=1.0,cutoff=0.0",)):
        together, alone = (
            [text for one in said_by for text in one.texts]
            for said_by in (
                answer(model, processor, shown, "what", *specs, batch=size, generation=SHORT)
                for size in (3, 1)
            )
        )
        assert together == alone
        said[specs] = tuple(together)
    assert len(set(said.values())) == 3
