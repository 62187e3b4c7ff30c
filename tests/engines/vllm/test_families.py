"""Another family than the demo model's: Qwen2-VL, whose pictures come as patches and whose positions have several axes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from inside_vllm import Engine, ask, cut, pictures
from tiny_qwen import PROMPT, build

from keepsight import mitigate

pytestmark = pytest.mark.vllm
SPECS = [
    None,
    "m3id:decay=0.7,cutoff=0.0",
    "vcd:alpha=4.0,beta=0.0,noise_step=999",
    "pai:alpha=0.0,gamma=4.0",
]
NEW = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def engine(start: Callable[..., Any], folder: Path) -> Engine:
    return Engine(start(model=str(folder), limit_mm_per_prompt={"image": 2, "video": 0}, max_model_len=256))


@pytest.mark.parametrize("seen", [1, 2], ids=["one picture", "two pictures"])
def test_answers_are_as_on_transformers(engine: Engine, folder: Path, seen: int) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    mark = "<|vision_start|><|image_pad|><|vision_end|>"
    text, shown = PROMPT.replace(mark, mark * seen), [pictures()[i : i + seen] for i in range(16)]
    plain: list[Any] = []
    for spec in SPECS:
        wanted = []
        for images in shown:
            inputs = processor(images=images, text=[text], return_tensors="pt")
            with mitigate(model, *([] if spec is None else [spec])):
                out = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
            wanted.append(cut(out[0, inputs["input_ids"].shape[1] :].tolist()))
        plain = plain or wanted
        assert spec is None or sum(a != b for a, b in zip(wanted, plain, strict=True)) > len(shown) // 2
        asked = [ask(images, text) for images in shown]
        params = engine.params(spec, max_tokens=NEW)
        found = engine.llm.generate(asked, params, use_tqdm=False)
        assert [list(one.outputs[0].token_ids) for one in found] == wanted, spec
    engine.check_nothing_left()
