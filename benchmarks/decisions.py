"""How often does a model in half precision decide otherwise than in float32? ``python benchmarks/decisions.py``

Methods decide: which tokens a cutoff keeps, whether a gate is closed, which heads are scaled, which tokens are sinks. The
same decisions are taken by one model in float32 and in half precision, under teacher forcing: the float32 model's own greedy
captions of drawn pictures are read by both, so that both decide about the same text at every step. Two models: the demo
model, and a LLaVA of its shape with wide random weights.

As a control, the float32 model reads the pictures one at a time instead of in a batch, which rounds otherwise. Variants
compute one thing in float32 inside the half-precision model, and say what that would gain. Writes
``benchmarks/results/decisions.json``.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from keepsight import M3ID, PAI, SLA, VAR, VCD, VHR, VSV
from keepsight.attention_mods.pai import CUTOFF
from keepsight.attention_mods.var import Redistribute, image_centric
from keepsight.attention_mods.vhr import RecordHeads, Reinforce
from keepsight.decoding.contrast import plausible
from keepsight.decoding.m3id import closed
from keepsight.decoding.views import NoImage
from keepsight.engines.hf import attention
from keepsight.engines.hf.engine import HFPasses
from keepsight.engines.hf.lens import RecordLayers, _Logits
from keepsight.engines.hf.patching import editing, text_attention
from keepsight.parts import Contrast, Edit, HookContext, Lens, Passes, Prelude
from keepsight.target import Target

RESULT = Path(__file__).parent / "results" / "decisions.json"
SPLIT, LONGEST, BATCH = "val-shifted", 32, 32
"""The pictures' split, the largest number of tokens of a caption, and the pictures that are read together."""
DTYPES = ("bfloat16", "float16")
CONTROL = "float32, one picture at a time"
EXACT = ("output projection", "heads", "attention scores")
"""What variants compute in float32."""

VAR_SETTINGS = VAR(dims=(0, 1), tau=0.5)
"""Neither model has sinks. These dimensions and this threshold make sinks of part of the tokens."""
GATES = (0.7, 0.9)
RECORDING = "sdpa_recording"
"""The name of the attention function that also keeps the heads' outputs in float32."""

Decisions = dict[str, Tensor]
"""By decision, ``(pictures, …)``: bool, or token ids; the first dimension after the pictures may be steps of a caption."""


class SelectedHeads(Redistribute):
    """VAR's edit, which also records the heads and rows that it acts on."""

    def __init__(self, layers: frozenset[int]) -> None:
        assert VAR_SETTINGS.dims is not None
        assert VAR_SETTINGS.tau is not None
        super().__init__(VAR_SETTINGS, layers, VAR_SETTINGS.dims, VAR_SETTINGS.tau)
        self.selected: dict[int, Tensor] = {}

    def attn_pattern(self, pattern: Tensor, image: Tensor, context: HookContext) -> Tensor:
        sinks = torch.zeros_like(image)
        sinks[:, : context.prompt] = self.sinks[context.layer]
        self.selected[context.layer] = image_centric(
            pattern, image, sinks, ratio=self.method.ratio, mass=self.method.mass
        )
        return super().attn_pattern(pattern, image, context)


KEPT: dict[str, Tensor] = {}
"""What the heads of the layer that ran last put out, in float32: ``out``, ``(batch, rows, heads, head_dim)``."""


def recording(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
    """transformers' ``sdpa``, which also keeps its outputs before they are rounded."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    base = ALL_ATTENTION_FUNCTIONS["sdpa"]
    KEPT["out"] = base(module, query.float(), key.float(), value.float(), mask, **kwargs)[0]
    return base(module, query, key, value, mask, **kwargs)


@contextmanager
def exact_heads(model: Any) -> Iterator[None]:
    """Open a block in which the decoder's attention is ``recording``."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionMaskInterface.register(RECORDING, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    AttentionInterface.register(RECORDING, recording)
    with text_attention(model, RECORDING):
        yield


class ExactRecord(RecordHeads):
    """Records the heads' outputs before they are rounded."""

    def head_out(self, out: Tensor, context: HookContext) -> Tensor:
        super().head_out(KEPT["out"], context)
        return out


class ExactReinforce(Reinforce):
    """Selects heads by their outputs before they are rounded."""

    def head_out(self, out: Tensor, context: HookContext) -> Tensor:
        if context.layer in self.selected:
            return super().head_out(out, context)
        super().head_out(KEPT["out"], context)  # only for the selection
        return super().head_out(out, context)


@contextmanager
def exact_scores() -> Iterator[None]:
    """Open a block in which explicit attention scores are products of float32 queries and keys."""
    base = attention.attend

    def attend(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return base(query.float(), key.float(), *args, **kwargs)

    with patch.object(attention, "attend", attend):
        yield


class Reader:
    """A model that reads prompts and the captions that follow them.

    Args:
        model: the model, in any data type.
        inputs: the prompts of a batch of pictures, all of one length.
        captions: ``(batch, steps)`` the tokens that follow.
        exact: what is computed in float32 in a model of another data type, of ``EXACT``.
    """

    def __init__(self, model: Any, inputs: Mapping[str, Any], captions: Tensor, exact: str = "") -> None:
        given = {
            key: value.to(model.dtype) if value.is_floating_point() else value
            for key, value in inputs.items()
        }
        assert bool((given["attention_mask"] == 1).all()), "prompts of one length need no positions"
        self.model, self.captions, self.exact = model, captions, exact
        self.target = Target(model, given)

    def read(self, inputs: Mapping[str, Any], *edits: Edit) -> Tensor:
        """Returns the logits ``(batch, steps, vocab)`` before each token of the captions, under some edits."""
        ids = torch.cat([inputs["input_ids"], self.captions[:, :-1]], dim=1)
        heard: list[Tensor] = []
        hook = self.target.head.register_forward_pre_hook(lambda _, args: heard.append(args[0]))
        try:
            with editing(self.target, *edits) if edits else nullcontext(), torch.no_grad():
                logits = self.model(
                    **{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
                ).logits
        finally:
            hook.remove()
        if self.exact == "output projection":
            logits = heard[0].float() @ self.target.head.weight.float().T
        before = inputs["input_ids"].shape[1] - 1
        found: Tensor = logits[:, before:].float()
        return found

    def decisions(self) -> Decisions:
        """Returns every decision of every method."""
        target = self.target
        expert = self.read(target.model_inputs)
        found: Decisions = {"none: argmax": expert.argmax(-1)}
        self._contrasts(expert, found)
        self._guidance(found)
        self._heads(found)
        self._sinks(found)
        self._vista(expert, found)
        return found

    def _amateur(self, part: Contrast) -> Tensor:
        (view,) = part.views
        return self.read(view.inputs(self.target))

    def _by_step(self, part: Contrast, expert: Tensor, amateur: Tensor) -> Tensor:
        """Returns the most likely token ``(batch, steps)`` after a contrast."""
        steps = range(expert.shape[1])
        return torch.stack([part.combine(expert[:, t], [amateur[:, t]], t).argmax(-1) for t in steps], dim=1)

    def _contrasts(self, expert: Tensor, found: Decisions) -> None:
        vcd, m3id = VCD(), M3ID()
        assert m3id.cutoff is not None
        for method, cutoff in ((vcd, vcd.beta), (m3id, m3id.cutoff)):
            name = method.name()
            (part,) = method.parts(self.target)
            found[f"{name}: kept by the cutoff"] = plausible(expert, cutoff)
            found[f"{name}: argmax"] = self._by_step(part, expert, self._amateur(part))
        for gate in GATES:
            flat = expert.flatten(0, 1)
            found[f"m3id: gate {gate} closed"] = closed(flat, gate).reshape(expert.shape[:2])

    def _guidance(self, found: Decisions) -> None:
        method = PAI()
        boost, part = method.parts(self.target)
        assert isinstance(boost, Edit)
        assert isinstance(part, Contrast)
        with exact_scores() if self.exact == "attention scores" else nullcontext():
            expert = self.read(self.target.model_inputs, boost)
        found["pai: kept by the cutoff"] = plausible(expert, CUTOFF)
        found["pai: argmax"] = self._by_step(part, expert, self._amateur(part))

    def _heads(self, found: Decisions) -> None:
        method = VHR()
        prelude, edit = method.parts(self.target)
        assert isinstance(prelude, Prelude)
        assert isinstance(edit, Reinforce)
        exact = self.exact == "heads"
        with exact_heads(self.model) if exact else nullcontext():
            if exact:
                record = ExactRecord(edit.layers)
                edit = ExactReinforce(edit.layers, method.alpha, record.seen, whole_prompt=True)
                HFPasses(self.target).prefill(NoImage(), record)
            else:
                prelude.run(HFPasses(self.target))
            found["vhr: argmax"] = self.read(self.target.model_inputs, edit).argmax(-1)
        found["vhr: heads"] = torch.stack([edit.selected[layer] for layer in sorted(edit.layers)], dim=1)

    def _sinks(self, found: Decisions) -> None:
        (part,) = VAR_SETTINGS.parts(self.target)
        edit = SelectedHeads(part.layers)
        with exact_scores() if self.exact == "attention scores" else nullcontext():
            found["var: argmax"] = self.read(self.target.model_inputs, edit).argmax(-1)
        layers = sorted(edit.layers)
        found["var: sinks"] = torch.stack([edit.sinks[layer] for layer in layers], dim=1)
        # (batch, layers, heads, rows): rows stand after the picture, in prompt and caption
        found["var: heads"] = torch.stack([edit.selected[layer] for layer in layers], dim=1)

    def _vista(self, expert: Tensor, found: Decisions) -> None:
        prelude, steer = VSV().parts(self.target)
        assert isinstance(prelude, Prelude)
        assert isinstance(steer, Edit)
        passes: Passes = HFPasses(self.target)
        prelude.run(passes)
        found["vsv: argmax"] = self.read(self.target.model_inputs, steer).argmax(-1)
        (lens,) = SLA().parts(self.target)
        assert isinstance(lens, Lens)
        record = RecordLayers(frozenset(lens.layers))
        self.read(self.target.model_inputs, record)
        states = torch.stack([record.states[layer][1] for layer in lens.layers])
        logits = _Logits(states, self.target.head, None, states.device)
        found["sla: argmax"] = lens.combine(expert, logits, 0).argmax(-1)


def read_all(model: Any, batches: Sequence[tuple[Any, Tensor, Tensor]], exact: str = "") -> list[Decisions]:
    """Returns the decisions of each batch of pictures."""
    return [Reader(model, inputs, captions, exact).decisions() for inputs, captions, _ in batches]


def compare(
    reference: Sequence[Decisions], other: Sequence[Decisions], batches: Sequence[tuple[Any, Tensor, Tensor]]
) -> dict[str, dict[str, int]]:
    """Returns by decision how many units there are, and in how many of them two models differ.

    Of a cutoff, units are the tokens that either model keeps; ``steps`` and ``steps_differ`` count sets of tokens. Of the
    others, units are single decisions; ``pictures_differ`` counts pictures in which any differs.
    """
    found: dict[str, dict[str, int]] = {}
    for name in reference[0]:
        row = {"of": 0, "differ": 0, "pictures_differ": 0}
        for mine, theirs, (_, captions, real) in zip(reference, other, batches, strict=True):
            a, b, counts = mine[name], theirs[name], real
            if name.startswith("var: heads"):
                # Rows after the picture begin in the prompt; steps of a caption that has ended do not count
                rows = a.shape[-1] - (captions.shape[1] - 1)
                counts = torch.cat([real[:, :1].expand(-1, rows), real[:, 1:]], dim=1)[:, None, None]
            elif name.split(": ")[1] in ("heads", "sinks"):
                counts = torch.ones_like(a)
            elif a.ndim == 3:
                row["steps"] = row.get("steps", 0) + int(real.sum())
                changed = (a != b).any(-1) & real
                row["steps_differ"] = row.get("steps_differ", 0) + int(changed.sum())
                counts = (a | b) & real[..., None]
            counts = counts.expand(a.shape)
            differ = (a != b) & counts
            row["of"] += int(counts.sum())
            row["differ"] += int(differ.sum())
            row["pictures_differ"] += int(differ.flatten(1).any(-1).sum())
        found[name] = row
    return found


def random_llava() -> Any:
    """Returns a LLaVA of the demo model's shape with wide random weights, seed 0, and an output projection of its own."""
    from keepsight.demo.model import load

    demo, _ = load()
    config = copy.deepcopy(demo.config)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    model = type(demo)(config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.ndim >= 2:
            scale = 0.6 if "embed" in name or "lm_head" in name else 0.12
            weight.data.normal_(0, scale, generator=generator)
    model.generation_config = demo.generation_config
    return model


def captioned(model: Any, prompts: Sequence[Any]) -> list[tuple[Any, Tensor, Tensor]]:
    """Returns for each batch of prompts the prompts, the model's greedy captions, and which of their tokens are real."""
    found = []
    for inputs in prompts:
        length = inputs["input_ids"].shape[1]
        captions = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)[:, length:]
        ended = (captions == model.generation_config.eos_token_id).cumsum(-1)
        # A token is real up to and including the one that ends the caption
        real = (ended - (captions == model.generation_config.eos_token_id).long()) == 0
        found.append((inputs, captions, real))
    return found


def one_at_a_time(batches: Sequence[tuple[Any, Tensor, Tensor]]) -> Iterator[tuple[Any, Tensor, Tensor]]:
    """Yields every row of every batch as a batch of its own."""
    for inputs, captions, real in batches:
        for i in range(len(captions)):
            row = {key: value[i : i + 1] for key, value in inputs.items()}
            yield row, captions[i : i + 1], real[i : i + 1]


def joined(rows: Sequence[Decisions], batches: Sequence[tuple[Any, Tensor, Tensor]]) -> list[Decisions]:
    """Returns decisions that were taken row by row as decisions of batches."""
    found, start = [], 0
    for _, captions, _ in batches:
        part = rows[start : start + len(captions)]
        found.append({name: torch.cat([row[name] for row in part]) for name in part[0]})
        start += len(captions)
    return found


def measure(model: Any, prompts: Sequence[Any]) -> dict[str, Any]:
    """Returns how often decisions differ from those of a float32 model, by way of computing."""
    batches = captioned(model, prompts)
    reference = read_all(model, batches)
    alone = joined(read_all(model, list(one_at_a_time(batches))), batches)
    ways = {CONTROL: compare(reference, alone, batches)}
    for name in DTYPES:
        half = copy.deepcopy(model).to(getattr(torch, name))
        ways[name] = compare(reference, read_all(half, batches), batches)
        # float16 has eight times the digits: there is less left to gain
        for exact in EXACT if name == "bfloat16" else ():
            ways[f"{name}, {exact} in float32"] = compare(reference, read_all(half, batches, exact), batches)
    return {"steps": sum(int(real.sum()) for *_, real in batches), "ways": ways}


def main() -> None:
    from demo_methods import weights_digest

    from keepsight.demo.model import PROMPT, load
    from keepsight.demo.world import scenes
    from keepsight.experiments.environment import hardware, versions
    from keepsight.source.prompts import prepare

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    demo, processor = load()
    pictures = [scene.image() for scene in scenes(SPLIT, args.images)]
    prompts = [
        dict(prepare(processor, pictures[i : i + BATCH], PROMPT)) for i in range(0, len(pictures), BATCH)
    ]
    makers: dict[str, Callable[[], Any]] = {"demo": lambda: demo, "random": random_llava}
    result = {
        "split": SPLIT,
        "n": len(pictures),
        "seed": 0,
        "weights_sha256": weights_digest(),
        "var": {"dims": VAR_SETTINGS.dims, "tau": VAR_SETTINGS.tau},
        "models": {name: measure(make(), prompts) for name, make in makers.items()},
        "hardware": hardware("cpu"),
        "versions": versions(),
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, found in result["models"].items():
        print(f"{name}: {found['steps']} steps")
        for way, rows in found["ways"].items():
            print(f"  {way}")
            for decision, row in rows.items():
                more = f"  steps {row['steps_differ']} of {row['steps']}" if "steps" in row else ""
                print(
                    f"    {decision:<28} {row['differ']} of {row['of']}, in {row['pictures_differ']} pictures{more}"
                )


if __name__ == "__main__":
    main()
