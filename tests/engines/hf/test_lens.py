"""A logit lens: what earlier layers would predict, beside a slow restatement."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from families import FAMILIES, SPECIAL
from torch import Tensor

from keepsight import M3ID, SLA, VSV, UnsupportedModel, attached, mitigate
from keepsight.parts import LayerLogits, Lens
from keepsight.target import Target

PROMPTS = [[1, 10, 11, 12, 13], [1, 20, 21]]
OPTIONS: dict[str, Any] = {
    "max_new_tokens": 4, "min_new_tokens": 4, "suppress_tokens": SPECIAL, "do_sample": False,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Looks(M3ID):
    """Changes nothing, and keeps what two layers predict."""

    final_norm: bool = False
    kept: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        pass

    def parts(self, target: Target) -> Iterator[Lens]:
        def combine(scores: Tensor, logits: LayerLogits, step: int) -> Tensor:
            self.kept.append((step, logits.stacked(), logits.mean()))
            return scores

        yield Lens(layers=[0, 1], combine=combine, final_norm=self.final_norm)


@pytest.mark.parametrize("final_norm", [True, False])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_layer_logits_are_those_of_an_uncached_pass(name: str, final_norm: bool) -> None:
    family = FAMILIES[name]
    model, inputs = family.model(), family.inputs(PROMPTS[:1])
    looks = Looks(final_norm=final_norm, kept=[])
    with mitigate(model, looks):
        written = model.generate(**inputs, **OPTIONS)
    target = Target(model, inputs)
    width = inputs["input_ids"].shape[1]
    cap = getattr(target.text_config, "final_logit_softcapping", None)
    assert [step for step, _, _ in looks.kept] == [0, 1, 2, 3]
    for step, stacked, mean in looks.kept:
        grown = {**inputs, "input_ids": written[:, : width + step]}
        grown["attention_mask"] = torch.ones_like(grown["input_ids"])
        for key in ("token_type_ids", "mm_token_type_ids"):
            if key in grown:
                grown[key] = torch.nn.functional.pad(grown[key], (0, step))
        states: list[Tensor] = []
        keep = states.append
        handles = [layer.register_forward_hook(lambda _m, _a, out, k=keep: k(out)) for layer in target.layers]
        with torch.no_grad():
            model(**grown, use_cache=False)
        for handle in handles:
            handle.remove()
        for layer, state in enumerate(states):
            last = (state[0] if isinstance(state, tuple) else state)[:, -1]
            logits = target.head(target.final_norm(last) if final_norm else last).float()
            logits = logits if cap is None else cap * torch.tanh(logits / cap)
            torch.testing.assert_close(stacked[layer], logits, rtol=1e-4, atol=2e-4)
        torch.testing.assert_close(mean, stacked.mean(0), rtol=1e-4, atol=2e-4)


def test_scores_leave_as_log_probabilities_and_keep_what_was_ruled_out() -> None:
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.inputs(PROMPTS)
    with mitigate(model, Looks(kept=[])):
        out = model.generate(**inputs, **OPTIONS, output_scores=True, return_dict_in_generate=True)
    for scores in out.scores:
        torch.testing.assert_close(scores.exp().sum(-1), torch.ones(2))
        assert bool((scores[:, SPECIAL] == -torch.inf).all())


def test_the_lens_has_to_reproduce_the_models_own_logits() -> None:
    """A model that scales its logits, or that norms something else at its end, cannot be read layer by layer."""
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.inputs(PROMPTS)
    sla = SLA(gamma=0.5, window=1)

    def scaled(_module: Any, _args: Any, output: Any) -> Any:
        output.logits = output.logits * 0.2
        return output

    handle = model.register_forward_hook(scaled)
    try:
        with (
            mitigate(model, sla),
            pytest.raises(UnsupportedModel, match="its logits are not what its final norm"),
        ):
            model.generate(**inputs, max_new_tokens=2)
    finally:
        handle.remove()
    with mitigate(model, sla):
        model.generate(**inputs, max_new_tokens=2)


def test_the_lens_is_not_refused_for_many_drafts_nor_for_an_inner_block() -> None:
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.inputs([[1, *[10, 11, 12] * 20]])
    sla, options = SLA(gamma=0.5, window=1), {"max_new_tokens": 4, "do_sample": False}
    with mitigate(model, sla):
        plain = model.generate(**inputs, **options)
        assert torch.equal(model.generate(**inputs, **options, prompt_lookup_num_tokens=45), plain)
    with attached(model, inputs, sla) as outer, attached(model, inputs, VSV(strength=2.0)) as inner:
        model.generate(**inputs, **options, logits_processor=[*outer, *inner])
