"""What is measured on a live model: against its own eager attention in every family, under methods, token by token."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import planted
import pytest
import torch
from families import BREAK, END, FAMILIES, IMAGE, START
from standin import standin

from keepsight import (
    PAI,
    VAR,
    InputError,
    InvalidParameter,
    NoImageTokens,
    Target,
    UnsupportedModel,
    parse,
)
from keepsight.analysis.attention_maps import capture, look
from keepsight.analysis.modality_dominance import (
    PADDING,
    RecordAttentionMass,
    measure,
    measure_all,
    parts_of,
    special_ids,
)
from keepsight.analysis.observers import AttentionObserver
from keepsight.demo.world import scenes
from keepsight.eval.modality_dominance.score import PARTS, Masses, Reading
from keepsight.eval.modality_dominance.summary import difference, summary
from keepsight.inference.generation import Generation
from keepsight.source.prompts import prepare

PROMPT = [1, 10, 11, 12, 13]
IN_CONTEXT = sorted(set(FAMILIES) - {"mllama"})
NEW = 4


def names(target: Target, special: Any = ()) -> list[str]:
    return ["padding" if part == PADDING else PARTS[part] for part in parts_of(target, special).tolist()]


def measured(name: str, *methods: Any, new: int = NEW) -> Masses:
    family = FAMILIES[name]
    inputs = family.inputs([PROMPT])
    return measure(family.model(), inputs, *methods, generation=Generation(max_new_tokens=new), special=())


def by_eager_attention(name: str) -> Masses:
    """The same from ``output_attentions`` of the model's own eager attention, one weight after the other."""
    family = FAMILIES[name]
    model = copy.deepcopy(family.model())
    model.set_attn_implementation("eager")
    inputs = family.inputs([PROMPT])
    out = model.generate(
        **inputs, max_new_tokens=NEW, do_sample=False, output_attentions=True, return_dict_in_generate=True
    )
    kinds = names(Target(model, inputs))
    layers, heads = len(out.attentions[0]), out.attentions[0][0].shape[1]
    attention = np.zeros((layers, heads, len(PARTS)))
    tokens, shares = np.zeros(len(PARTS)), np.zeros((len(out.attentions), layers))
    for step, weights in enumerate(out.attentions):
        seen = [*kinds, *["own"] * step]
        for kind in seen:
            tokens[PARTS.index(kind)] += 1
        for layer, given in enumerate(weights):
            row = given[0, :, -1].double().numpy()  # the last row predicts
            kept = seen[len(seen) - row.shape[1] :]  # a sliding window keeps the last keys
            for column, kind in enumerate(kept):
                attention[layer, :, PARTS.index(kind)] += row[:, column]
            shares[step, layer] = row[:, [kind == "image" for kind in kept]].sum(-1).mean()
    return Masses(attention, tokens, shares)


@pytest.mark.parametrize("name", IN_CONTEXT)
def test_masses_are_those_of_eager_attention(name: str) -> None:
    found, expected = measured(name), by_eager_attention(name)
    assert found.attention.shape == expected.attention.shape
    np.testing.assert_allclose(found.attention, expected.attention, atol=2e-5)
    np.testing.assert_allclose(found.shares, expected.shares, atol=1e-5)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.attention.sum(-1), found.rows, atol=1e-4)


def test_listening_does_not_change_what_is_written() -> None:
    family = FAMILIES["llava"]
    inputs = family.inputs([PROMPT])
    plain = family.model().generate(**inputs, max_new_tokens=NEW, do_sample=False)
    assert capture(family.model(), inputs, generation=Generation(max_new_tokens=NEW)).ids == tuple(
        plain[0, inputs["input_ids"].shape[1] :].tolist()
    )
    after = family.model().generate(**inputs, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(plain, after)


def test_sampling_starts_from_the_seed_and_leaves_the_callers_random_state() -> None:
    family = FAMILIES["llava"]
    inputs = family.inputs([PROMPT])

    def drawn(seed: int) -> tuple[int, ...]:
        generation = Generation(max_new_tokens=8, sample=True, seed=seed)
        return capture(family.model(), inputs, generation=generation).ids

    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first = drawn(0)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(4)
    assert drawn(0) == first
    assert len({drawn(seed) for seed in range(4)}) > 1


def test_what_a_map_captures_is_what_is_measured() -> None:
    """One generation gives both, also where the map is of one layer."""
    inputs = FAMILIES["qwen2_5_vl"].inputs([PROMPT])
    model = FAMILIES["qwen2_5_vl"].model()
    generation = Generation(max_new_tokens=NEW)
    seen = capture(model, inputs, layers=(1,), generation=generation, special=())
    alone = measured("qwen2_5_vl")
    np.testing.assert_allclose(seen.masses.attention, alone.attention, atol=1e-5)
    np.testing.assert_allclose(seen.masses.shares[:, 1], seen.attention.sum(-1).numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "idefics3"])
def test_pai_lowers_text_dominance(name: str) -> None:
    plain, strong = (
        summary([measured(name, *methods)])["all"]
        for methods in ((), (PAI(alpha=2, gamma=1.0, first_layer=0),))
    )
    assert (strong["mdi"].value or 0) < (plain["mdi"].value or 0)
    assert (strong["image_share"].value or 0) > (plain["image_share"].value or 0)


@pytest.mark.parametrize("name", ["llava", "internvl"])
def test_var_moves_attention_from_the_begin_mark_to_the_picture(name: str) -> None:
    model, inputs = planted.build(name), planted.prompt(name)
    var = VAR(dims=(planted.DIM,), mass=0.0, ratio=0.0)
    generation = Generation(max_new_tokens=1)
    plain, drained = (measure(model, inputs, *methods, generation=generation) for methods in ((), (var,)))
    bos, image = PARTS.index("bos"), PARTS.index("image")
    # Layer 2 is the first that VAR edits: what comes in is the same, and the begin mark, a sink, loses 60 %
    np.testing.assert_allclose(drained.attention[2, :, bos], 0.4 * plain.attention[2, :, bos], rtol=1e-4)
    assert (drained.attention[2, :, image] > plain.attention[2, :, image]).all()
    np.testing.assert_allclose(drained.attention[:2], plain.attention[:2], atol=1e-6)
    text = difference([plain], [drained], Reading(group=1))["middle"]["mdi"]
    assert text.value is not None
    assert text.value < 0


@pytest.mark.parametrize("spec", ["vcd:alpha=3.0,beta=0.0,noise_step=999", "pai:alpha=0,gamma=3"])
def test_a_contrast_branch_is_not_heard(spec: str) -> None:
    plain, contrasted = measured("llava", new=1), measured("llava", parse(spec), new=1)
    np.testing.assert_allclose(contrasted.attention, plain.attention, atol=1e-6)


def test_which_token_is_what() -> None:
    model = FAMILIES["qwen2_vl"].model()
    inputs = FAMILIES["qwen2_vl"].inputs([[1, 10, 11]])
    target = Target(model, inputs)
    assert inputs["input_ids"][0].tolist() == [1, START, *[IMAGE] * 6, END, 10, 11]
    assert names(target) == ["bos", "before", *["image"] * 6, "after", "after", "after"]
    assert names(target, special_ids(target)) == [
        "bos",
        "special",
        *["image"] * 6,
        "special",
        "after",
        "after",
    ]
    told = SimpleNamespace(all_special_ids=[11], added_tokens_decoder={10: SimpleNamespace(special=True)})
    assert names(target, special_ids(target, told))[-2:] == ["special", "special"]


def test_what_stands_first_is_bos_and_so_is_the_begin_mark_elsewhere() -> None:
    target = Target(FAMILIES["llava"].model(), FAMILIES["llava"].inputs([[20, 10, 11]]))
    ids = torch.tensor(
        [[0, 20, 21, *[IMAGE] * 2, BREAK, *[IMAGE] * 2, 1, 10]]
    )  # padded; the mark after the picture
    mask = (ids != 0).long()
    padded = Target(target.model, {"input_ids": ids, "attention_mask": mask})
    assert names(padded) == [
        "padding", "bos", "before", "image", "image", "after", "image", "image", "bos", "after",
    ]  # fmt: skip
    assert names(padded, {BREAK})[5] == "special"
    leading = Target(target.model, {"input_ids": ids[:, 3:], "attention_mask": mask[:, 3:]})
    assert names(leading)[:2] == ["image", "image"]


def test_padding_counts_for_nothing() -> None:
    family = FAMILIES["llava"]
    generation = Generation(max_new_tokens=2)
    plain = measure(family.model(), family.inputs([PROMPT]), generation=generation)
    inputs = family.inputs([PROMPT])
    for key in ("input_ids", "attention_mask"):
        inputs[key] = torch.nn.functional.pad(inputs[key], (3, 0))
    padded = measure(family.model(), inputs, generation=generation)
    np.testing.assert_allclose(padded.attention, plain.attention, atol=1e-5)
    np.testing.assert_array_equal(padded.tokens, plain.tokens)


def test_own_tokens_are_counted_as_they_come() -> None:
    assert measured("llava", new=5).counts == {
        "image": 4, "bos": 1, "special": 0, "before": 0, "after": 4, "own": 2,
    }  # fmt: skip


def test_memory_does_not_grow_with_the_prompt() -> None:
    """Of a row of any length one number for every head and part is kept, and one share."""
    for length in (40, 4000):
        parts = torch.full((length,), PARTS.index("image"))
        heard = RecordAttentionMass([0], parts)
        for number in range(length - 1, length + 9):
            row = torch.full((2, number + 1), 1 / (number + 1))
            heard.observe(row, number, 0, SimpleNamespace(layer=0))  # type: ignore[arg-type]
        kept = [*heard.sums.values(), *heard.shares.values()]
        assert sum(one.untyped_storage().nbytes() for one in kept) == 4 * (2 * len(PARTS) + 10)


def test_refusals() -> None:
    llava, mllama = FAMILIES["llava"], FAMILIES["mllama"]
    with pytest.raises(UnsupportedModel, match="text dominance: it sees the picture by cross-attention"):
        measure(mllama.model(), mllama.inputs([PROMPT]))
    with pytest.raises(InputError, match="one prompt at a time can be observed, not 2"):
        measure(llava.model(), llava.inputs([PROMPT, PROMPT]))
    with pytest.raises(InvalidParameter, match="num_beams=2"):
        measure(llava.model(), llava.inputs([PROMPT]), generation=Generation(num_beams=2))
    with pytest.raises(NoImageTokens):
        measure(llava.model(), llava.text_only(PROMPT))
    eager = copy.deepcopy(llava.model())
    eager.set_attn_implementation("eager")
    with pytest.raises(UnsupportedModel, match="sdpa"):
        measure(eager, llava.inputs([PROMPT]))


def test_a_layer_that_was_not_heard_is_named() -> None:
    target = Target(FAMILIES["llava"].model(), FAMILIES["llava"].inputs([PROMPT]))
    heard = RecordAttentionMass([0, 1], parts_of(target, ()))
    heard.observe(torch.full((4, target.prompt), 0.1), target.prompt - 1, 0, SimpleNamespace(layer=0))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModel, match="layer 1 has no attention that can be observed"):
        heard.masses(target, 1)


def test_an_observer_must_say_what_it_keeps() -> None:
    with pytest.raises(TypeError, match="observe"):
        AttentionObserver([0])  # type: ignore[abstract]


def test_many_pictures_and_the_map_of_one() -> None:
    model, processor = standin()
    pictures = [scene.image() for scene in scenes("val", 2)]
    told: list[int] = []
    generation = Generation(max_new_tokens=6)
    found = measure_all(
        model, processor, pictures, "Describe this image.", generation=generation, advance=told.append
    )
    assert told == [1, 1]
    inputs = prepare(processor, pictures[:1], "Describe this image.")
    seen = look(model, processor, inputs, generation=generation)
    assert seen.masses is not None
    np.testing.assert_allclose(seen.masses.attention, found[0].attention, atol=1e-5)
    assert len(seen.shares) == len(seen.pieces) == found[0].rows == 6
    assert seen.shares == pytest.approx(found[0].shares.mean(-1).tolist(), abs=1e-5)
    assert "".join(seen.pieces) == seen.caption
    for word in seen.words:
        assert word.share == pytest.approx(np.mean([seen.shares[at] for at in word.tokens]))
    assert not np.allclose(found[0].shares, found[1].shares, atol=1e-4)
    counts = found[0].counts
    assert (counts["image"], counts["bos"], counts["special"]) == (
        64,
        1,
        0,
    )  # words that are <unk> to the stand-in are text
