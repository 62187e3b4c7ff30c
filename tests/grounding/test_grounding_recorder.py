"""The two ways to the figures agree with each other, and with a pass that recomputes everything, on every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import BREAK, END, FAMILIES, SPECIAL, Family
from strong import STRONG
from torch import Tensor
from transformers import SuppressTokensLogitsProcessor

from keepsight import NoImageTokens, ProcessorReused, attached, mitigate
from keepsight.grounding import Figures, GroundingRecorder, NotRecorded, teacher_force
from keepsight.inference.detokenizer import until_end

PROMPTS = [[1, 10, 11, 12, 13], [1, 20, 21]]
NEW = 7
PLAIN: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}
SUPPRESS = SuppressTokensLogitsProcessor([2, *SPECIAL])
DROPPED = (BREAK, END)
"""Mistral 3 lays row separators between the pieces of a picture that only its processor knows."""
SOME = ["llava", "qwen2_5_vl", "gemma3", "mllama"]


def recorder(family: Family, inputs: dict[str, Any], **options: Any) -> GroundingRecorder:
    return GroundingRecorder(family.model(), inputs, also_drop=DROPPED, **options)


def close(one: Figures, other: Figures) -> bool:
    return all(torch.allclose(a, b, atol=1e-4, rtol=1e-4) for a, b in zip(one, other, strict=True))


def forced(family: Family, inputs: dict[str, Any], ids: list[list[int]]) -> list[Figures]:
    return [found for [found] in teacher_force(family.model(), inputs, ids, also_drop=DROPPED)]


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 1.5}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", FAMILIES)
def test_live_and_forced_agree_and_no_token_changes(name: str, options: dict[str, Any]) -> None:
    family = FAMILIES[name]
    inputs = family.inputs(PROMPTS)
    outs = []
    for listening in (False, True):
        torch.manual_seed(0)
        heard = recorder(family, inputs)
        processors = [heard, SUPPRESS] if listening else [SUPPRESS]
        outs.append(
            family.model().generate(
                **inputs,
                **{**PLAIN, **options},
                logits_processor=processors,
                output_scores=True,
                return_dict_in_generate=True,
            )
        )
    plain, same = outs
    assert torch.equal(plain.sequences, same.sequences)
    assert all(torch.equal(a, b) for a, b in zip(plain.scores, same.scores, strict=True))
    live = heard.rows(same)
    assert [len(ids) for ids, _ in live] == [NEW, NEW]
    for (_, one), other in zip(live, forced(family, inputs, [ids for ids, _ in live]), strict=True):
        assert close(one, other)
        assert (one.with_image - one.without_image).abs().max() > 0.01


@pytest.mark.parametrize("name", FAMILIES)
def test_forced_equals_recomputing_each_token_without_a_cache(name: str) -> None:
    """Rows of a padded batch, answers of different lengths; the text-only prompt is written by hand."""
    family, answers = FAMILIES[name], [[30, 31, 32, 33], [40, 41]]
    found = forced(family, family.inputs(PROMPTS), answers)
    for row, answer in enumerate(answers):
        views = family.row(PROMPTS, row), family.text_only(PROMPTS[row])
        for at, token in enumerate(answer):
            before = torch.tensor(answer[:at], dtype=torch.long)
            expert, amateur = (family.uncached_logits(view, before).log_softmax(-1) for view in views)
            wanted = [
                expert[token],
                amateur[token],
                (1.5 * expert - 0.5 * amateur).log_softmax(-1)[token],
                -(expert.exp() * expert).sum(),
                torch.nn.functional.kl_div(amateur, expert, reduction="sum", log_target=True),
            ]
            got = torch.stack([column[at] for column in found[row]])
            assert torch.allclose(got, torch.stack(wanted), atol=1e-4, rtol=1e-4), (row, at)
        assert all(column.shape == (len(answer),) for column in found[row])


@pytest.mark.parametrize("door", ["attached", "mitigate"])
@pytest.mark.parametrize("method", ["m3id", "vcd"])
@pytest.mark.parametrize("name", SOME)
def test_composes_with_contrastive_methods_through_both_doors(name: str, method: str, door: str) -> None:
    family, recipe = FAMILIES[name], STRONG[method]
    inputs, model = FAMILIES[name].inputs(PROMPTS), FAMILIES[name].model()
    with mitigate(model, recipe):
        wanted = model.generate(**inputs, **PLAIN, logits_processor=[SUPPRESS])
    heard = recorder(family, inputs)
    if door == "mitigate":
        with mitigate(model, recipe):
            written = model.generate(**inputs, **PLAIN, logits_processor=[heard, SUPPRESS])
    else:
        with attached(model, inputs, recipe) as processors:
            written = model.generate(**inputs, **PLAIN, logits_processor=[heard, SUPPRESS, *processors])
    assert torch.equal(written, wanted)
    assert not torch.equal(written, model.generate(**inputs, **PLAIN, logits_processor=[SUPPRESS]))
    live = heard.rows(written)
    for (_, one), other in zip(live, forced(family, inputs, [ids for ids, _ in live]), strict=True):
        assert close(one, other)


def test_edits_are_heard_with_the_picture_and_not_without() -> None:
    family = FAMILIES["llava"]
    inputs, model = family.inputs(PROMPTS), family.model()
    heard = recorder(family, inputs)
    with mitigate(model, STRONG["vhr"]):
        written = model.generate(**inputs, **PLAIN, logits_processor=[heard, SUPPRESS])
        live = heard.rows(written)
        within = forced(family, inputs, [ids for ids, _ in live])
    after = forced(family, inputs, [ids for ids, _ in live])
    for (_, one), other, again in zip(live, after, within, strict=True):
        assert not torch.allclose(one.with_image, other.with_image, atol=1e-2)
        assert torch.allclose(one.without_image, other.without_image, atol=1e-4)
        assert all(torch.equal(a, b) for a, b in zip(other, again, strict=True))


def test_rows_end_at_their_end_mark() -> None:
    family = FAMILIES["llava"]
    inputs = family.inputs(PROMPTS)

    def end_first_row(ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, 2] = -torch.inf
        if ids.shape[1] == inputs["input_ids"].shape[1] + 2:
            scores[0, 2] = 1e4
        return scores

    heard = recorder(family, inputs)
    written = family.model().generate(**inputs, **PLAIN, logits_processor=[heard, SUPPRESS, end_first_row])
    (ended, first), (whole, second) = heard.rows(written)
    assert (len(ended), ended[-1], len(whole)) == (3, 2, NEW)
    assert (len(first.entropy), len(second.entropy)) == (3, NEW)
    assert all(
        close(a, b) for a, b in zip([first, second], forced(family, inputs, [ended, whole]), strict=True)
    )


@pytest.mark.parametrize(
    "options",
    [{"num_beams": 3}, {"num_beams": 2, "do_sample": True}, {"do_sample": True, "num_return_sequences": 2}],
)
def test_beams_and_several_sequences_are_refused_by_name(options: dict[str, Any]) -> None:
    family = FAMILIES["llava"]
    inputs = family.inputs(PROMPTS)
    with pytest.raises(NotRecorded, match="beams and several sequences"):
        family.model().generate(**inputs, **{**PLAIN, **options}, logits_processor=[recorder(family, inputs)])


def test_drafts_that_are_taken_back_are_refused_by_name() -> None:
    family = FAMILIES["llava"]
    inputs = family.inputs([[1, *[10, 11, 12] * 3]])
    with pytest.raises((NotRecorded, ProcessorReused), match="assisted generation"):
        family.model().generate(
            **inputs,
            **{**PLAIN, "max_new_tokens": 20},
            prompt_lookup_num_tokens=3,
            logits_processor=[recorder(family, inputs)],
        )


def test_a_recorder_serves_one_generation_and_reads_its_tokens_alone() -> None:
    family = FAMILIES["llava"]
    inputs, model = family.inputs(PROMPTS), family.model()
    heard = recorder(family, inputs)
    with pytest.raises(NotRecorded, match="nothing was recorded"):
        heard.rows(inputs["input_ids"])
    other = family.inputs([[1, 50, 51, 52, 53], [1, 20, 21]])
    with pytest.raises(ProcessorReused, match="made for a prompt of shape"):
        model.generate(**other, **PLAIN, logits_processor=[recorder(family, inputs)])
    written = model.generate(**inputs, **PLAIN, logits_processor=[heard, SUPPRESS])
    again = [[column.tolist() for column in found] for _, found in heard.rows(written)]
    assert again == [[column.tolist() for column in found] for _, found in heard.rows(written)]
    for wrong in (written[:, :-1], written[:1], torch.cat([written, written[:, :1]], dim=1)):
        with pytest.raises(NotRecorded, match="not the tokens"):
            heard.rows(wrong)
    with pytest.raises(ProcessorReused, match="served a generation"):
        model.generate(**inputs, **PLAIN, logits_processor=[heard])


def test_a_prompt_without_a_picture_is_refused() -> None:
    family = FAMILIES["llava"]
    with pytest.raises(NoImageTokens):
        GroundingRecorder(family.model(), {"input_ids": torch.tensor([[1, 5, 6]])})
    with pytest.raises(NoImageTokens):
        teacher_force(family.model(), {"input_ids": torch.tensor([[1, 5, 6]])}, [[7]])


def test_until_end() -> None:
    assert until_end([5, 6, 2, 0, 0], 2) == [5, 6, 2]
    assert until_end([5, 9, 2], [2, 9]) == [5, 9]
    assert until_end([5, 6], 2) == [5, 6]
    assert until_end([5, 6], None) == [5, 6]
