"""Pictures are found in what the image processors of transformers return, without torchvision."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from image_layouts import OTHER, PLACEHOLDER
from PIL import Image
from torch import Tensor

from keepsight.decoding.image_tensors import image_tensors
from keepsight.decoding.vcd import draw_noise, noised
from keepsight.decoding.views import transform_pixels


@dataclass(frozen=True)
class Processed:
    """A processor, the type of the models that read it, and options that keep its pictures small.

    Args:
        mirrors: whether a mirrored picture gives mirrored pieces: not where it is cut into tiles.
        nested: whether pictures are given by prompt.
    """

    processor: str
    model_type: str
    options: dict[str, Any] | None = None
    mirrors: bool = True
    nested: bool = False


_SMALL = {"size": {"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 30}}
_TILED = {"size": {"longest_edge": 128}, "max_image_size": {"longest_edge": 64}}

PROCESSORS = (
    Processed("LlavaImageProcessorPil", "llava"),
    Processed("CLIPImageProcessorPil", "vipllava"),
    Processed("SiglipImageProcessorPil", "paligemma"),
    Processed("Gemma3ImageProcessorPil", "gemma3"),
    Processed("GotOcr2ImageProcessorPil", "internvl"),
    Processed("JanusImageProcessorPil", "janus"),
    Processed("ChameleonImageProcessorPil", "chameleon"),
    Processed("Ovis2ImageProcessorPil", "ovis2"),
    Processed("VideoLlavaImageProcessor", "video_llava"),
    Processed("DeepseekVLImageProcessorPil", "deepseek_vl"),
    Processed(
        "DeepseekVLHybridImageProcessorPil", "deepseek_vl_hybrid",
        {"size": {"height": 64, "width": 64}, "high_res_size": {"height": 128, "width": 128}},
    ),
    Processed(
        "DeepseekOcr2ImageProcessorPil", "deepseek_ocr2",
        {"tile_size": 64, "size": {"height": 96, "width": 96}}, mirrors=False,
    ),
    Processed("AriaImageProcessorPil", "aria", {"max_image_size": 490}),
    Processed("PixtralImageProcessorPil", "mistral3"),
    Processed("Emu3ImageProcessor", "emu3"),
    Processed("LlavaNextImageProcessorPil", "llava_next", mirrors=False),
    Processed("LlavaOnevisionImageProcessorPil", "llava_onevision", mirrors=False),
    Processed("Idefics2ImageProcessorPil", "idefics2", {"size": {"shortest_edge": 64, "longest_edge": 128}}, nested=True),
    Processed("Idefics3ImageProcessorPil", "idefics3", _TILED, mirrors=False, nested=True),
    Processed("SmolVLMImageProcessorPil", "smolvlm", _TILED, mirrors=False, nested=True),
    Processed(
        "GraniteDoclingImageProcessorPil", "granite_docling",
        {"size": {"height": 64, "width": 64}, "max_patches": 4}, mirrors=False, nested=True,
    ),
    Processed("MllamaImageProcessorPil", "mllama", mirrors=False, nested=True),
    Processed("Qwen2VLImageProcessorPil", "qwen2_vl", _SMALL),
    Processed("Glm4vImageProcessorPil", "glm4v"),
    Processed("Glm46VImageProcessorPil", "glm46v"),
    Processed("Glm5NextImageProcessorPil", "glm5_next"),
    Processed("CohereCompassImageProcessorPil", "cohere_compass", _SMALL),
    Processed("Ernie4_5_VLMoeImageProcessorPil", "ernie4_5_vl_moe", _SMALL),
    Processed("VideoLlama3ImageProcessorPil", "video_llama_3", _SMALL),
    Processed("Cosmos3EdgeImageProcessorPil", "cosmos3_edge"),
    Processed("HunYuanVLImageProcessorPil", "hunyuan_vl", _SMALL),
    Processed("HYV4VLImageProcessorPil", "hy_v4_vl", _SMALL),
    Processed("PaddleOCRVLImageProcessorPil", "paddleocr_vl", _SMALL),
    Processed("Gemma4ImageProcessorPil", "gemma4"),
    Processed("MiniCPMV4_6ImageProcessorPil", "minicpmv4_6"),
    Processed("FuyuImageProcessorPil", "fuyu", {"size": {"height": 90, "width": 120}}),
)  # fmt: skip

every_processor = pytest.mark.parametrize("processed", PROCESSORS, ids=lambda one: one.model_type)


def pictures() -> list[Image.Image]:
    """Two pictures of different shapes, neither of which is square."""
    out = []
    for seed, size in enumerate([(100, 60), (64, 120)]):
        pixels = torch.randint(0, 256, (6, 8, 3), generator=torch.Generator().manual_seed(seed))
        out.append(Image.fromarray(pixels.to(torch.uint8).numpy()).resize(size, Image.Resampling.BICUBIC))
    return out


def made(processed: Processed) -> tuple[Any, Any]:
    """The processor, and a configuration that names the sizes which the processor uses."""
    if not hasattr(transformers, processed.processor):
        pytest.skip(f"this release of transformers has no {processed.processor}")
    processor = getattr(transformers, processed.processor)(**(processed.options or {}))
    vision = SimpleNamespace(
        num_channels=3,
        patch_size=getattr(processor, "patch_size", None),
        spatial_merge_size=getattr(processor, "merge_size", None),
    )
    config = SimpleNamespace(
        model_type=processed.model_type, vision_config=vision, image_token_id=PLACEHOLDER
    )
    return processor, config


def inputs_of(processed: Processed, processor: Any, images: list[Image.Image]) -> dict[str, Any]:
    given: Any = [[image] for image in images] if processed.nested else images
    inputs = dict(processor(given, return_tensors="pt"))
    return fuyu_inputs(processor, inputs) if processed.model_type == "fuyu" else inputs


def fuyu_inputs(processor: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """What Fuyu's processor makes of pictures that its image processor has padded."""
    patches, ids = [], []
    side = processor.patch_size["height"]
    for image, height, width in zip(
        inputs["images"], inputs["image_unpadded_heights"], inputs["image_unpadded_widths"], strict=True
    ):
        rows, columns = (-(-int(length) // side) for length in (height, width))
        cut = image[0][:, : rows * side, : columns * side]
        patches.append(torch.as_tensor(processor.patchify_image(cut.numpy())))
        ids += ([PLACEHOLDER] * columns + [OTHER]) * rows + [OTHER]
    return {"pixel_values": torch.cat(patches), "input_ids": torch.tensor([ids])}


def values(inputs: dict[str, Any], changed: dict[str, Tensor], config: Any) -> dict[str, list[Tensor]]:
    """The values of every piece, tensor by tensor."""
    found = image_tensors(inputs, config)
    return {key: [changed[key][piece.where] for piece in pieces] for key, pieces in found.items()}


@every_processor
def test_a_picture_is_the_same_alone_and_in_a_batch(processed: Processed) -> None:
    processor, config = made(processed)
    images = pictures()
    for order in ([0, 1], [1, 0], [0, 1, 0]):
        together = inputs_of(processed, processor, [images[i] for i in order])
        covered = noised(together, 0, 500, config)
        noise = draw_noise(together, 0, config)
        parts = [inputs_of(processed, processor, [images[i]]) for i in order]
        alone = [(part, noised(part, 0, 500, config), draw_noise(part, 0, config)) for part in parts]
        for what, whole in enumerate((together, covered, noise)):
            found = values(together, whole, config)
            expected = [values(part[0], part[what], config) for part in alone]
            for key, pieces in found.items():
                wanted = [piece for part in expected for piece in part.get(key, [])]
                assert len(pieces) == len(wanted)
                assert all(torch.equal(a, b) for a, b in zip(pieces, wanted, strict=True))
        for key, value in noise.items():
            inside = torch.zeros_like(value)
            for piece in image_tensors(together, config)[key]:
                inside[piece.where] = 1
            assert torch.equal(value != 0, inside == 1)
            assert torch.equal(covered[key][inside == 0], together[key][inside == 0])


@pytest.mark.parametrize(
    "processed", [one for one in PROCESSORS if one.mirrors], ids=lambda one: one.model_type
)
def test_a_mirrored_picture_is_one_that_was_mirrored_before(processed: Processed) -> None:
    processor, config = made(processed)
    # Sizes that patches divide and that can be centred: what is filled up at the right is at the left in the mirror.
    long, short = (90, 60) if processed.model_type == "fuyu" else (112, 56)
    images = [
        image.resize(size) for image, size in zip(pictures(), [(long, short), (short, long)], strict=True)
    ]
    for change, method in (
        (lambda picture: picture.flip(-1), Image.Transpose.FLIP_LEFT_RIGHT),
        (lambda picture: picture.flip(-2), Image.Transpose.FLIP_TOP_BOTTOM),
    ):
        inputs = inputs_of(processed, processor, images)
        before = inputs_of(processed, processor, [image.transpose(method) for image in images])
        found = transform_pixels(inputs, config, change)
        for key, value in found.items():
            # Resizing and centring are symmetric but for rounding; another order of pixels would be far away.
            assert (value - before[key]).abs().mean() < 0.01 * before[key].std()
            assert (value - inputs[key]).abs().mean() > 0.1 * before[key].std()
