"""Views as requests of vLLM: ids as ``NoImage`` drops them, pixels as ``NoisedImage`` changes them, and names in caches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from inside_vllm import PROMPT, Engine, cut, pictures

from keepsight import mitigate
from keepsight.decoding.vcd import NoisedImage, noised
from keepsight.decoding.views import MainPrompt, NoImage, TransformedImage
from keepsight.demo.model import IMAGE, IMAGE_TOKENS, load
from keepsight.engines.vllm.views import Prompt, translate
from keepsight.errors import InputError, NoImageTokens, UnsupportedModel
from keepsight.target import Target

pytestmark = pytest.mark.vllm


def feature(
    pixels: torch.Tensor, offset: int, *, modality: str = "image", name: str = "a", **more: Any
) -> Any:
    from vllm.multimodal.inputs import (
        MultiModalBatchedField,
        MultiModalFeatureSpec,
        MultiModalFieldElem,
        MultiModalKwargsItem,
        PlaceholderRange,
    )

    values = {"pixel_values": pixels, **more}
    item = MultiModalKwargsItem(
        {key: MultiModalFieldElem(value, MultiModalBatchedField()) for key, value in values.items()}
    )
    place = PlaceholderRange(offset=offset, length=IMAGE_TOKENS)
    return MultiModalFeatureSpec(
        data=item, modality=modality, identifier=name, mm_position=place, mm_hash=name
    )


@pytest.fixture(scope="module")
def inputs() -> Any:
    _, processor = load()
    two = PROMPT.replace("<image>", "<image> and <image>")
    return processor(images=pictures()[:2], text=two, return_tensors="pt")


@pytest.fixture(scope="module")
def prompt(inputs: Any) -> Prompt:
    ids = inputs["input_ids"][0].tolist()
    first = ids.index(IMAGE)
    second = ids.index(IMAGE, first + IMAGE_TOKENS)
    places = ((first, "a"), (second, "b"))
    return Prompt(
        ids, [feature(inputs["pixel_values"][i], at, name=name) for i, (at, name) in enumerate(places)]
    )


@pytest.fixture(scope="module")
def config() -> Any:
    return load()[0].config


def test_pictures_are_dropped_as_on_transformers(prompt: Prompt, inputs: Any, config: Any) -> None:
    for view in (NoImage(), NoImage(also_drop=(prompt.ids[3],))):
        made = translate(view, prompt, config)
        wanted = view.inputs(Target(load()[0], inputs))["input_ids"][0].tolist()
        assert (made.ids, made.features) == (wanted, [])
    assert len(prompt.ids) - len(translate(NoImage(), prompt, config).ids) == 2 * IMAGE_TOKENS


def test_the_callers_own_text_is_taken_as_it_is(prompt: Prompt, config: Any) -> None:
    assert translate(NoImage(), prompt, config, [5, 6, 7]).ids == [5, 6, 7]


def test_every_picture_is_noised_as_on_transformers(prompt: Prompt, inputs: Any, config: Any) -> None:
    made = translate(NoisedImage(999, 3), prompt, config)
    wanted = noised(dict(inputs), 3, 999, config)["pixel_values"]
    assert made.ids == prompt.ids
    for i, one in enumerate(made.features):
        assert torch.equal(one.data["pixel_values"].data, wanted[i])
        assert torch.equal(prompt.features[i].data["pixel_values"].data, inputs["pixel_values"][i])


def test_changed_pictures_have_names_of_their_own_in_caches(prompt: Prompt, config: Any) -> None:
    def names(view: Any) -> list[tuple[Any, Any]]:
        return [(one.identifier, one.mm_hash) for one in translate(view, prompt, config).features]

    same = names(NoisedImage(999, 3))
    assert same == names(NoisedImage(999, 3))
    flip = TransformedImage(lambda picture: picture.flip(-1))
    made = [
        same,
        names(NoisedImage(998, 3)),
        names(NoisedImage(999, 4)),
        names(flip),
        names(flip),
        names(MainPrompt()),
    ]
    assert len({name for each in made for pair in each for name in pair}) == len(made) * 2
    assert names(MainPrompt()) == [("a", "a"), ("b", "b")]


def test_transforms_of_pictures(prompt: Prompt, inputs: Any, config: Any) -> None:
    made = translate(TransformedImage(lambda picture: picture.flip(-1)), prompt, config)
    assert torch.equal(made.features[1].data["pixel_values"].data, inputs["pixel_values"][1].flip(-1))


def test_what_is_not_known_is_refused_by_name(prompt: Prompt, config: Any) -> None:
    pixels = prompt.features[0].data["pixel_values"].data
    noise = NoisedImage(1, 1)
    empty = feature(pixels, 3)
    empty.data = None
    elsewhere = Prompt([1] * 100 + [IMAGE], [feature(pixels, 3)])
    for view, wrong, error, words in (
        (NoImage(), Prompt([1, 2], []), NoImageTokens, "holds no picture"),
        (noise, Prompt([1, 2], []), NoImageTokens, "holds no picture"),
        (noise, Prompt([1], [feature(pixels, 0, modality="video")]), InputError, "prompts with video"),
        (noise, Prompt([1], [empty]), UnsupportedModel, "mm-processor-cache-type lru"),
        (noise, Prompt([1], [feature(pixels, 0, strange=pixels)]), UnsupportedModel, "'strange'"),
        (noise, Prompt([1], [feature(pixels.byte(), 0)]), UnsupportedModel, "--no-mm-device-do-normalize"),
        (NoImage(), elsewhere, UnsupportedModel, "vLLM puts the picture at token 1"),
        (NoImage(), Prompt([IMAGE] * 100, [feature(pixels, 0)]), InputError, "no text to contrast"),
        (SimpleNamespace(), prompt, UnsupportedModel, "view SimpleNamespace"),
    ):
        made: Any = view
        with pytest.raises(error, match=words):
            translate(made, wrong, config)


def test_several_pictures_in_a_prompt_are_as_on_transformers(start: Any) -> None:
    engine = Engine(start())
    model, processor = load()
    text = PROMPT.replace("<image>", "<image>\n<image>")
    pairs = [pictures()[i : i + 2] for i in range(0, 32, 2)]
    for spec in ("m3id:decay=0.07,cutoff=0.02", "vcd:beta=0.02,noise_step=999"):
        asked = [{"prompt": text, "multi_modal_data": {"image": pair}} for pair in pairs]
        found = engine.llm.generate(asked, engine.params(spec, max_tokens=24), use_tqdm=False)
        inputs = processor(
            images=[image for pair in pairs for image in pair], text=[text] * len(pairs), return_tensors="pt"
        )
        with mitigate(model, spec):
            out = model.generate(**inputs, max_new_tokens=24, do_sample=False)
        wanted = [cut(row) for row in out[:, inputs["input_ids"].shape[1] :].tolist()]
        assert [list(one.outputs[0].token_ids) for one in found] == wanted
    engine.check_nothing_left()
