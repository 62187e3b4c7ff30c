"""vLLM for its tests: engines of a few seconds, and the answers that the engine for transformers gives."""

from __future__ import annotations

import functools
from typing import Any

from keepsight import mitigate
from keepsight.demo.model import EOS, load
from keepsight.demo.world import scenes
from keepsight.vllm import extra_args

SETTINGS = {
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
}  # fmt: skip
"""A quiet engine in this very process, on one thread."""
PROMPT = "USER: <image>\nDescribe this image. ASSISTANT:"
TOKENS = 48
SPECS: dict[str, str | None] = {
    "greedy": None,
    "m3id": "m3id:decay=0.07,cutoff=0.02",
    "vcd": "vcd:beta=0.02,noise_step=999",
    "pai": "pai:alpha=0.0,gamma=3.0",
    "joined": "m3id:decay=0.07,cutoff=0.02+vcd:beta=0.02,noise_step=999",
    "two amateurs": "two_amateurs:TwoAmateurs:strength=0.2",
}
"""Settings at which each method changes many captions; two of them need three requests."""


@functools.cache
def pictures(count: int = 128) -> list[Any]:
    """Pictures of the demo world: half of them where habit is right, half where it misleads."""
    found = [one for split in ("test", "test-shifted") for one in scenes(split, 64)]
    # In turn, so that a few of them hold both kinds
    order = [i // 2 + 64 * (i % 2) for i in range(count)]
    return [found[i].image().convert("RGB") for i in order]


@functools.cache
def wanted(spec: str | None, count: int = 128) -> list[list[int]]:
    """The tokens that the engine for transformers generates for ``pictures(count)``, greedily, in float32."""
    model, processor = load()
    rows: list[list[int]] = []
    for start in range(0, count, 32):
        images = pictures()[start : min(start + 32, count)]
        inputs = processor(images=images, text=[PROMPT] * len(images), return_tensors="pt", padding=True)
        with mitigate(model, *([] if spec is None else [spec])):
            out = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        rows += [cut(row) for row in out[:, inputs["input_ids"].shape[1] :].tolist()]
    return rows


def cut(row: list[int]) -> list[int]:
    """An answer up to its end."""
    return row[: row.index(EOS) + 1] if EOS in row else row


class Engine:
    """An engine with the demo model, and what its scheduler knows."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm

    @property
    def scheduler(self) -> Any:
        return self.llm.llm_engine.engine_core.engine_core.scheduler

    def params(self, spec: str | None, **options: Any) -> Any:
        from vllm import SamplingParams

        extra = {} if spec is None else {"extra_args": extra_args(spec)}
        return SamplingParams(**{"temperature": 0, "max_tokens": TOKENS, **extra, **options})

    def answer(self, params: Any, images: list[Any]) -> list[list[int]]:
        """The tokens of one answer for each picture; ``params`` for all of them, or one for each."""
        asked = [ask(image) for image in images]
        return [list(one.outputs[0].token_ids) for one in self.llm.generate(asked, params, use_tqdm=False)]

    def check_nothing_left(self) -> None:
        """No request, set, block of the cache or row of the processor is left behind."""
        scheduler, pool = self.scheduler, self.scheduler.kv_cache_manager.block_pool
        assert not scheduler.requests
        assert not scheduler._sets
        assert not scheduler._refused
        assert not scheduler.running
        assert not scheduler.waiting
        assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1
        assert scheduler.counts.repaired == scheduler.counts.failed == 0


def ask(image: Any, prompt: str = PROMPT) -> dict[str, Any]:
    return {"prompt": prompt, "multi_modal_data": {"image": image}}
