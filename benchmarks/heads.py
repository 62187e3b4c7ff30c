"""Do vision-aware heads carry the picture? ``python benchmarks/heads.py``

Ranks the demo model's heads by VHD on ``val`` pictures, layer by layer, then silences the highest or the lowest half of a
layer's heads, or as many at random, in every layer that VHR acts on, and captions ``val-shifted``. If VHD finds heads that
look, silencing the highest costs recall and silencing the lowest costs little. Also says whether the model has massive
activations and sinks. Writes ``benchmarks/results/heads.json``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from keepsight.attention_mods.layers import last_layers
from keepsight.attention_mods.vhr import LATE_SHARE, RecordHeads, clean, divergence
from keepsight.decoding.views import MainPrompt, NoImage
from keepsight.engines.hf.engine import HFPasses
from keepsight.engines.hf.patching import editing
from keepsight.method import Method, parameter
from keepsight.parts import Edit, HookContext
from keepsight.target import Target

RESULT = Path(__file__).parent / "results" / "heads.json"


class Silence(Edit):
    """Sets the outputs of some heads to zero, at every row."""

    def __init__(self, kept: dict[int, Tensor]) -> None:
        self.layers, self.kept = frozenset(kept), kept

    def head_out(self, out: Tensor, context: HookContext) -> Tensor:
        return out * self.kept[context.layer].to(out.dtype)[:, None]


@dataclass(frozen=True, kw_only=True)
class Silenced(Method):
    """An ablation and not a mitigation: ``which`` heads of each layer put out zeros. It is compared like a method."""

    paper: ClassVar[str] = "2412.13949"
    which: str = parameter("highest", "heads that fall silent", choices=("highest", "lowest", "random"))

    def off(self) -> Silenced:
        raise TypeError("an ablation has no strength")

    # A recipe holds settings alone, and no tensors. The heads are therefore looked up by the setting.
    @contextmanager
    def attach(self, target: Target) -> Iterator[Sequence[Any]]:
        with editing(target, Silence(KEPT[self.which])):
            yield []


KEPT: dict[str, dict[int, Tensor]] = {}
"""For each setting of ``which`` and each layer, 1 for the heads that are kept and 0 for those that are silenced."""


class Look(Edit):
    """Records how massive the residual stream gets, and what attention the first token and the picture get."""

    def __init__(self, layers: frozenset[int]) -> None:
        self.layers = layers
        self.massive: dict[int, float] = {}
        self.share: dict[int, tuple[float, float]] = {}

    def resid_pre(self, hidden: Tensor, context: HookContext) -> None:
        x = hidden.float()
        ratio = (x.abs().amax(-1) / x.square().mean(-1).sqrt()).amax()
        self.massive[context.layer] = max(self.massive.get(context.layer, 0.0), float(ratio))

    def rows(self, context: HookContext) -> Tensor:
        return (context.row_numbers() == context.prompt - 1)[None].expand(context.image.shape[0], -1)

    def attn_pattern(self, probs: Tensor, image: Tensor, context: HookContext) -> Tensor:
        first, picture = probs[..., 0].mean(), (probs * image[:, None, None]).sum(-1).mean()
        self.share[context.layer] = (float(first), float(picture))
        return probs


def divergences(target: Target, layers: frozenset[int]) -> dict[int, Tensor]:
    """Returns the cleaned VHD ``(pictures, heads)`` of each layer on the prompt's last token, with nothing reinforced."""
    seen = []
    for view in (NoImage(), MainPrompt()):
        record = RecordHeads(layers)
        HFPasses(target).prefill(view, record)
        seen.append(record.seen)
    text, shown = seen
    return {layer: clean(divergence(shown[layer], text[layer]), text[layer]) for layer in layers}


def main() -> None:
    from demo_methods import as_result, compare_methods, weights_digest

    from keepsight.demo.model import PROMPT, load
    from keepsight.demo.world import scenes
    from keepsight.source.prompts import prepare

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    model, processor = load()
    # The demo model's tensors are tiny, so more threads only wait for each other.
    torch.set_num_threads(1)
    target = Target(model, prepare(processor, [scene.image() for scene in scenes("val", 64)], PROMPT))
    count = len(target.layers)
    every = frozenset(range(count))
    vhd = {layer: values.mean(0) for layer, values in divergences(target, every).items()}
    look = Look(every)
    with torch.no_grad(), editing(target, look):
        model(**target.model_inputs)

    # These are the layers that VHR acts on by default.
    layers = sorted({1, *last_layers(count, LATE_SHARE)})
    shuffled = torch.Generator().manual_seed(0)
    for which in ("highest", "lowest", "random"):
        KEPT[which] = {}
        for layer in layers:
            heads = len(vhd[layer])
            # ``argsort`` is ascending, so the first half of it holds the lowest heads.
            order = torch.randperm(heads, generator=shuffled) if which == "random" else vhd[layer].argsort()
            silent = order[: heads // 2] if which == "lowest" else order[heads - heads // 2 :]
            KEPT[which][layer] = torch.ones(heads).index_fill(0, silent, 0.0)
    recipes = [Silenced(which=which) for which in KEPT]
    width = model.config.text_config.hidden_size
    result = {
        "weights_sha256": weights_digest(),
        "width": width,
        "layers": layers,
        "vhd": {str(layer): [round(float(v), 4) for v in values] for layer, values in sorted(vhd.items())},
        "massive": {str(layer): round(value, 3) for layer, value in sorted(look.massive.items())},
        "share_first_token_and_picture": {
            str(k): [round(x, 4) for x in v] for k, v in sorted(look.share.items())
        },
        "comparison": as_result(
            compare_methods(model, processor, recipes, split="val-shifted", n=args.images)
        ),
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"largest |x| / rms by layer (at most sqrt({width}) = {width**0.5:.1f}):", result["massive"])
    print(
        "attention of the prompt's last token to (first token, picture):",
        result["share_first_token_and_picture"],
    )
    for row in result["comparison"]["rows"]:
        print(f"{row['method']:<28} CHAIR_i {100 * row['chair_i']:.1f}  recall {100 * row['recall']:.1f}")


if __name__ == "__main__":
    main()
