"""What each method costs: prefill, time per token and memory over plain ``generate``, in one run.

    python benchmarks/cost.py                                         # the demo model, on the CPU
    python benchmarks/cost.py --shape 130m                            # a random LLaVA of about 130M parameters
    python benchmarks/cost.py --shape 7b --device cuda --dtype bfloat16

Plain and mitigated generations alternate, so that a machine whose speed drifts slows both; printed are medians of the
ratios of neighbours, with their spread. A clock among the stopping criteria reads the time after every token. Weights of
the larger shapes are random: speed does not depend on them. VAR is set so that every head redistributes, its worst case.
The row ``eager`` is no method: plain generation with eager attention that returns its weights, which the released code of
VAR needs for everything. Peak memory is measured on CUDA only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import StoppingCriteria

import sightline
from sightline import mitigate

SHAPES: dict[str, dict[str, Any]] = {
    "130m": {
        "text": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
                 "num_key_value_heads": 12, "vocab_size": 32064},
        "vision": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4},
    },
    "1b": {
        "text": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
                 "num_key_value_heads": 4, "vocab_size": 32064},
        "vision": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    },
    "7b": {
        "text": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
                 "num_key_value_heads": 32, "vocab_size": 32064},
        "vision": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    },
}  # fmt: skip
IMAGE = 32000
EAGER = "eager"
VAR = "var:ratio=0.0,mass=0.0,tau=0.5,dims=0+1"
METHODS = ["vcd", "m3id", "pai:gamma=1.0", "pai", "vhr", "vsv", "sla", VAR, EAGER]


def demo(batch: int, device: str, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    from sightline.demo.model import PROMPT, load
    from sightline.demo.world import scenes

    model, processor = load(dtype=dtype, device=device)
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}],
        add_generation_prompt=True,
    )
    pictures = [scene.image() for scene in scenes("val", batch)]
    inputs = processor(images=pictures, text=[text] * batch, return_tensors="pt")
    return model, dict(inputs.to(device))


def random_llava(shape: str, batch: int, device: str, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    parts = SHAPES[shape]
    vision = transformers.CLIPVisionConfig(**parts["vision"], image_size=336, patch_size=14)
    text = transformers.LlamaConfig(**parts["text"], max_position_embeddings=4096)
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE)
    torch.manual_seed(0)
    with torch.device(device):
        torch.set_default_dtype(dtype)
        model = transformers.LlavaForConditionalGeneration(config).eval()
        torch.set_default_dtype(torch.float32)
    ids = torch.randint(3, 31000, (batch, 40))
    ids = torch.cat([ids[:, :5], torch.full((batch, 576), IMAGE), ids[:, 5:]], dim=1)
    pixels = torch.randn(batch, 3, 336, 336, dtype=dtype)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    return model, {key: value.to(device) for key, value in inputs.items()}


class Clock(StoppingCriteria):
    """Reads the time after every token, and never stops anything."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.readings = [self.now()]

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.readings.append(self.now())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def split(self) -> tuple[float, float]:
        """Seconds of prefill, of the branch too, and median seconds of a token."""
        steps = [b - a for a, b in itertools.pairwise(self.readings)]
        token = statistics.median(steps[2:])
        # M3ID weighs nothing at the first token, so its branch is prefilled with the second one
        return steps[0] + steps[1] - token, token


@contextmanager
def way(model: Any, spec: str) -> Iterator[dict[str, Any]]:
    """A method in place, or eager attention; yields what ``generate`` needs besides."""
    if spec != EAGER:
        with mitigate(model, spec):
            yield {}
        return
    before = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation({"text_config": "eager"})
    try:
        yield {"output_attentions": True, "output_hidden_states": True, "return_dict_in_generate": True}
    finally:
        model.set_attn_implementation({"text_config": before})


def measure(
    model: Any, inputs: dict[str, Any], specs: list[str], new: int, repeats: int, device: str
) -> list[dict[str, Any]]:
    def once(**more: Any) -> tuple[float, float]:
        clock = Clock(device)
        options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        model.generate(**inputs, **options, stopping_criteria=[clock], **more)
        return clock.split()

    def peak(**more: Any) -> float | None:
        if device != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
        once(**more)
        return (torch.cuda.max_memory_allocated() - base) / 2**20

    once()
    plain_peak = peak()
    rows = []
    for spec in specs:
        with way(model, spec) as more:
            once(**more)
            mitigated_peak = peak(**more)
        pairs = []
        for _ in range(repeats):
            plain = once()
            with way(model, spec) as more:
                pairs.append((plain, once(**more)))
        prefill = [b[0] / a[0] for a, b in pairs]
        decode = [b[1] / a[1] for a, b in pairs]
        rows.append(
            {
                "method": spec,
                "prefill_ms": 1000 * statistics.median(b[0] for _, b in pairs),
                "plain_prefill_ms": 1000 * statistics.median(a[0] for a, _ in pairs),
                "prefill_ratio": statistics.median(prefill),
                "prefill_spread": [min(prefill), max(prefill)],
                "token_ms": 1000 * statistics.median(b[1] for _, b in pairs),
                "plain_token_ms": 1000 * statistics.median(a[1] for a, _ in pairs),
                "decode_ratio": statistics.median(decode),
                "decode_spread": [min(decode), max(decode)],
                "peak_mib": mitigated_peak,
                "plain_peak_mib": plain_peak,
            }
        )
    return rows


def ratio(row: dict[str, Any], part: str) -> str:
    low, high = row[f"{part}_spread"]
    return f"{row[f'{part}_ratio']:.2f}x [{low:.2f}, {high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=["demo", *SHAPES], default="demo")
    parser.add_argument("--method", action="append", help="spec string; may be repeated (default: all)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    make = demo if args.shape == "demo" else lambda *rest: random_llava(args.shape, *rest)
    model, inputs = make(args.batch, args.device, dtype)
    rows = measure(model, inputs, args.method or METHODS, args.new_tokens, args.repeats, args.device)
    hardware = (
        torch.cuda.get_device_name()
        if args.device == "cuda"
        else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    )
    result = {
        "shape": args.shape, "batch": args.batch, "prompt": inputs["input_ids"].shape[1], "new_tokens": args.new_tokens,
        "repeats": args.repeats, "dtype": args.dtype, "hardware": hardware, "sightline": sightline.__version__,
        "torch": torch.__version__, "transformers": transformers.__version__, "rows": rows,
    }  # fmt: skip
    print(
        f"{args.shape}, batch {args.batch}, prompt {result['prompt']} tokens, {args.new_tokens} new tokens, {args.dtype},"
        f" {hardware}, torch {torch.__version__}, transformers {transformers.__version__};"
        f" median of {args.repeats} [min, max]"
    )
    for row in rows:
        memory = "" if row["peak_mib"] is None else f"  peak {row['peak_mib'] / row['plain_peak_mib']:.2f}x"
        print(
            f"{row['method']:<40} prefill {ratio(row, 'prefill')}"
            f" ({row['plain_prefill_ms']:.1f} -> {row['prefill_ms']:.1f} ms)"
            f"  per token {ratio(row, 'decode')} ({row['plain_token_ms']:.2f} -> {row['token_ms']:.2f} ms){memory}"
        )
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
