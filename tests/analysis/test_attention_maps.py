"""Attention maps: what is captured against the model's own eager attention, words and grids by hand, the drawing."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import planted
import pytest
import torch
from families import FAMILIES, IMAGE
from PIL import Image
from standin import standin
from torch import Tensor

from keepsight import PAI, VAR, VCD, InputError, InvalidParameter, Target, UnsupportedModel, parse
from keepsight.analysis.attention_maps import (
    AttentionMap,
    Captured,
    RecordImageAttention,
    Sink,
    SinkRule,
    WordMap,
    capture,
    look,
    score_sinks,
    sink_rule,
    token_spans,
    word_maps,
)
from keepsight.analysis.image_grid import NoTokenGrid, seen_box, token_grid
from keepsight.attention_mods.var import redistribute, scaled_tau, sink_score
from keepsight.demo.world import scenes
from keepsight.inference.generation import Generation
from keepsight.parts import HookContext
from keepsight.reports.attention_figure import (
    HEAT,
    MARGIN,
    PANEL,
    WIDTH,
    caption_pieces,
    colours,
    columns_of,
    curves_of,
    draw,
    heat,
)
from keepsight.reports.attention_share_figure import HEIGHT
from keepsight.reports.pillow_text import ABSENT, INK, shorten, wrap
from keepsight.source.prompts import prepare

LARGE = 336
"""A panel's side where there are four words or less."""
PROMPT = [1, 10, 11, 12, 13]
GRIDS = {
    "llava": (2, 2),
    "qwen2_vl": (2, 3),
    "qwen2_5_vl": (2, 3),
    "qwen3_vl": (2, 3),
    "internvl": (2, 2),
    "gemma3": (2, 2),
    "paligemma": (2, 2),
}


def eager(name: str, ids: Sequence[int]) -> tuple[Any, Tensor, list[Tensor]]:
    """Attention by layer ``(heads, rows, keys)`` and hidden states of the prompt and ``ids``, as the model itself has it."""
    family = FAMILIES[name]
    model = copy.deepcopy(family.model())
    model.set_attn_implementation("eager")
    inputs = family.inputs([PROMPT])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids], dtype=torch.long)], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if family.token_types:
        inputs[family.token_types] = (inputs["input_ids"] == IMAGE).long()
    with torch.no_grad():
        out = model(**inputs, use_cache=False, output_attentions=True, output_hidden_states=True)
    where = (inputs["input_ids"][0] == IMAGE).nonzero().flatten()
    return out.attentions, where, list(out.hidden_states)


def watched(name: str, *methods: Any, layers: tuple[int, ...] | None = None) -> Captured:
    family = FAMILIES[name]
    generation = Generation(max_new_tokens=4)
    return capture(family.model(), family.inputs([PROMPT]), *methods, layers=layers, generation=generation)


@pytest.mark.parametrize("layers", [None, (1,)])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_captured_attention_is_the_models_own(name: str, layers: tuple[int, ...] | None) -> None:
    seen = watched(name, layers=layers)
    attentions, where, _ = eager(name, seen.ids)
    first = FAMILIES[name].inputs([PROMPT])["input_ids"].shape[1] - 1
    mean = torch.stack([attentions[layer][0].mean(0) for layer in (layers or (0, 1))]).mean(0)
    rows = range(first, first + len(seen.ids))  # the row before a token predicts it
    torch.testing.assert_close(seen.attention, mean[list(rows)][:, where], atol=1e-5, rtol=0)
    assert 0 < float(seen.attention.sum(-1).min()) <= float(seen.attention.sum(-1).max()) <= 1


def test_watching_does_not_change_what_is_written() -> None:
    for name in ("llava", "qwen2_5_vl"):
        family = FAMILIES[name]
        inputs = family.inputs([PROMPT])
        plain = family.model().generate(**inputs, max_new_tokens=4, do_sample=False)
        assert watched(name).ids == tuple(plain[0, inputs["input_ids"].shape[1] :].tolist())


def test_rows_of_another_edit_do_not_shift_the_rows_watched() -> None:
    """VAR recomputes all rows after the picture, of which the watched one is the last."""
    var = VAR(dims=(5,), tau=0.6, fraction=0.9, ratio=0.0, mass=0.0, layers=(1,))
    seen, plain = watched("llava", var, layers=(1,)), watched("llava", layers=(1,))
    attentions, where, hidden = eager("llava", [])
    image = torch.zeros(1, attentions[1].shape[-1], dtype=torch.bool)
    image[0, where] = True
    sinks = sink_score(hidden[1], (5,)) >= 0.6
    assert (image & sinks).any()
    assert (image & ~sinks).any()
    moved = redistribute(attentions[1], image, sinks, fraction=0.9, ratio=0.0, mass=0.0)
    torch.testing.assert_close(seen.attention[0], moved[0, :, -1].mean(0)[where], atol=1e-5, rtol=0)
    assert not torch.allclose(seen.attention[0], plain.attention[0], atol=1e-3)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_pai_raises_the_share_on_the_picture(name: str) -> None:
    shares = [
        float(watched(name, *methods, layers=(0,)).attention[0].sum())
        for methods in (
            (),
            (PAI(alpha=0.5, gamma=1.0, layers=(0,)),),
            (PAI(alpha=2, gamma=1.0, layers=(0,)),),
        )
    ]
    assert shares[0] + 1e-3 < shares[1] < shares[2]


@pytest.mark.parametrize(
    "spec", ["vcd:alpha=3.0,beta=0.0,noise_step=999", "m3id:decay=1.0", "pai:alpha=0,gamma=3"]
)
def test_a_contrast_branch_is_not_mistaken_for_the_model(spec: str) -> None:
    """The amateur sees another picture or none; what counts is where the model looked."""
    torch.testing.assert_close(watched("llava", parse(spec)).attention[0], watched("llava").attention[0])


def test_the_first_pass_over_a_row_counts() -> None:
    """An amateur that ran under the edits would come after the model itself."""
    watch = RecordImageAttention([0])
    image = torch.tensor([[False, True, True]])
    context = HookContext(0, 0, 3, 3, image, torch.ones_like(image))
    for probs in ([0.2, 0.5, 0.3], [0.9, 0.05, 0.05]):
        watch.attn_pattern(torch.tensor([[[probs], [[1.0, 0.0, 0.0]]]]), image, context)
    assert watch.mean(2, 1).tolist() == [[pytest.approx(0.25), pytest.approx(0.15)]]


def test_sink_scores_are_the_largest_over_the_inner_layers() -> None:
    model, processor = standin()
    inputs = prepare(processor, [scenes("val", 1)[0].image()], "Describe this image.")
    rule = SinkRule(tau=1.0, dims=(3, 70))
    seen = capture(model, inputs, generation=Generation(max_new_tokens=2), sinks=rule)
    with torch.no_grad():
        hidden = model(**inputs, output_hidden_states=True).hidden_states
    image = inputs["input_ids"][0] == model.config.image_token_id
    expected = torch.stack([sink_score(hidden[layer][0, image], (3, 70)) for layer in (2, 3, 4)]).amax(0)
    torch.testing.assert_close(seen.sinks, expected, atol=1e-4, rtol=1e-4)

    tau = float(expected.sort().values[-3:-1].mean())  # between the second and the third largest
    found = look(
        model, processor, inputs, generation=Generation(max_new_tokens=2), sinks=SinkRule(tau, (3, 70))
    )
    assert {8 * sink.row + sink.column for sink in found.sinks} == set(expected.topk(2).indices.tolist())


def test_without_known_dimensions_only_massive_activations_count() -> None:
    plain = torch.linspace(-1, 1, 64)
    spiked = torch.full((64,), 0.01)
    spiked[7] = 1.01  # 101 times the median; all but the whole length, so the score is nearly 8
    near = spiked.clone()
    near[7] = 0.99
    scores = score_sinks(torch.stack([plain, spiked, near]), SinkRule(2.5))
    assert scores.tolist() == [0, pytest.approx(7.976, abs=5e-3), 0]
    assert score_sinks(near, SinkRule(2.5, dims=(7,))) > 7.9


@pytest.mark.parametrize("name", ["llava", "internvl"])
def test_planted_sinks_are_found_unaided_and_var_drains_them(name: str) -> None:
    inputs, generation = planted.prompt(name), Generation(max_new_tokens=2)
    model = planted.build(name)
    tau = scaled_tau(planted.WIDTH)
    seen = capture(model, inputs, generation=generation)
    assert (seen.sinks >= tau).nonzero().flatten().tolist() == [planted.SPOT]
    assert not (capture(planted.build(name, sinks=False), inputs, generation=generation).sinks >= tau).any()

    assert int(seen.attention[0].argmax()) == planted.SPOT
    var = VAR(dims=(planted.DIM,), mass=0.0, ratio=0.0)
    drained = capture(model, inputs, var, generation=generation, layers=(2,)).attention[0]
    before = capture(model, inputs, generation=generation, layers=(2,)).attention[0]
    # Layer 2 is the first that VAR edits: its sinks lose 60 %, and the picture gains what BOS loses as well
    assert float(drained[planted.SPOT]) == pytest.approx(0.4 * float(before[planted.SPOT]), rel=1e-4)
    assert drained.sum() > before.sum()


def test_the_rule_comes_from_var_or_the_checkpoint() -> None:
    family = FAMILIES["llava"]
    target = Target(family.model(), family.inputs([PROMPT]))
    assert sink_rule(target) == SinkRule(scaled_tau(32), None)
    assert sink_rule(target, [PAI(), VAR(dims=(4,), tau=1.5)]) == SinkRule(1.5, (4,))
    with pytest.raises(InvalidParameter, match="dims"):
        sink_rule(target, [VAR(dims=(32,))])


class Pieces:
    """A tokenizer whose tokens are bytes, some of them half a letter."""

    table = (b"A", b" b", b"owl", b" \xc3", b"\xa9", b" dog", b"")

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return b"".join(self.table[i] for i in ids).decode(errors="replace")


def test_spans_by_hand() -> None:
    text, spans = token_spans(Pieces(), range(7))
    assert text == "A bowl é dog"
    assert spans == [(0, 1), (1, 3), (3, 6), (6, 7), (7, 8), (8, 12), (12, 12)]


def test_word_maps_by_hand() -> None:
    text, spans = token_spans(Pieces(), range(7))
    attention = torch.arange(28.0).reshape(7, 4) / 100
    bowl, dog = word_maps(text, spans, attention, (2, 2))
    assert (bowl.word, bowl.object, bowl.span, bowl.tokens) == ("bowl", "bowl", (2, 6), (1, 2))
    assert np.allclose(bowl.attention, [[0.06, 0.07], [0.08, 0.09]])  # mean of 4…7 and 8…11
    assert bowl.share == pytest.approx(0.30)
    assert (dog.tokens, dog.share) == ((5,), pytest.approx(0.86))


@pytest.mark.parametrize(("name", "grid"), GRIDS.items())
def test_grids(name: str, grid: tuple[int, int]) -> None:
    family = FAMILIES[name]
    assert token_grid(Target(family.model(), family.inputs([PROMPT]))) == grid


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - set(GRIDS)))
def test_layouts_that_are_no_grid_are_refused(name: str) -> None:
    family = FAMILIES[name]
    with pytest.raises(NoTokenGrid, match="maps can be drawn for llava"):
        token_grid(Target(family.model(), family.inputs([PROMPT])))


def test_other_refusals() -> None:
    family, mllama, qwen = FAMILIES["llava"], FAMILIES["mllama"], FAMILIES["qwen2_vl"]
    two = family.inputs([PROMPT, PROMPT])
    with pytest.raises(InputError, match="one prompt at a time"):
        token_grid(Target(family.model(), two))
    with pytest.raises(UnsupportedModel, match="cross-attention"):
        capture(mllama.model(), mllama.inputs([PROMPT]))
    with pytest.raises(InvalidParameter, match="layers 0 to 1, not 5"):
        watched("llava", layers=(5,))
    inputs = family.inputs([PROMPT])
    with pytest.raises(NoTokenGrid, match="2 pictures"):
        token_grid(
            Target(family.model(), {**inputs, "pixel_values": inputs["pixel_values"].repeat(2, 1, 1, 1)})
        )
    inputs["input_ids"][0, 2] = 5
    with pytest.raises(NoTokenGrid, match="without gaps"):
        token_grid(Target(family.model(), inputs))
    video = qwen.inputs([PROMPT])
    with pytest.raises(InputError, match="image_grid_thw"):
        token_grid(Target(qwen.model(), {**video, "image_grid_thw": None}))


def test_the_crop_is_what_the_processor_shows() -> None:
    """White outside the box, black inside: the model must see black alone, and white if the box were any smaller."""
    _, processor = standin()
    left, top, right, bottom = seen_box(processor.image_processor, 256, 128)
    assert (left, top, right, bottom) == (64, 0, 192, 128)
    canvas = Image.new("RGB", (256, 128), "white")
    canvas.paste((0, 0, 0), (64, 0, 192, 128))
    shown = processor.image_processor(canvas, return_tensors="pt")["pixel_values"]
    assert float(shown.max()) == -1
    canvas.paste((255, 255, 255), (64, 0, 65, 128))
    assert float(processor.image_processor(canvas, return_tensors="pt")["pixel_values"].max()) == 1


@pytest.mark.parametrize(
    ("settings", "box"),
    [
        ({}, (0, 0, 200, 100)),
        ({"do_center_crop": True, "size": {"shortest_edge": 50}, "crop_size": (40, 40)}, (60, 10, 140, 90)),
        ({"do_center_crop": True, "size": {"width": 50, "height": 50}, "crop_size": (25, 50)}, (0, 25, 200, 75)),
        ({"do_center_crop": True, "do_resize": False, "crop_size": (50, 50)}, (75, 25, 125, 75)),
        ({"do_pad": True}, (0, -50, 200, 150)),
    ],
)  # fmt: skip
def test_boxes_by_hand(settings: dict[str, Any], box: tuple[float, ...]) -> None:
    height, width = settings.get("crop_size", (None, None))
    made = {
        "do_resize": True,
        **settings,
        "size": SimpleNamespace(**settings.get("size", {})),
        "crop_size": SimpleNamespace(height=height, width=width),
    }
    assert seen_box(SimpleNamespace(**made), 200, 100) == pytest.approx(box)


def test_a_crop_that_cannot_be_told_is_refused() -> None:
    odd = SimpleNamespace(
        do_center_crop=True, do_resize=True, size=SimpleNamespace(longest_edge=9), crop_size=None
    )
    with pytest.raises(NoTokenGrid, match="size and crop_size"):
        seen_box(odd, 20, 10)


def word(name: str, peak: int = 0, scale: float = 0.5) -> WordMap:
    values = [[0.0, 0.0], [0.0, 0.0]]
    values[peak // 2][peak % 2] = scale
    return WordMap(name, name, (0, len(name)), (0,), tuple(map(tuple, values)))


def made(*words: WordMap, method: str | None = None, sinks: tuple[Sink, ...] = ()) -> AttentionMap:
    return AttentionMap(method, "a dog and a cat.", (2, 2), words, sinks, SinkRule(3.5))


def drawn(*maps: AttentionMap, **options: Any) -> np.ndarray[Any, Any]:
    picture = Image.new("RGB", (40, 40), (120, 160, 120))
    return np.asarray(draw(picture, maps, model="demo", prompt="?", averaged="all layers", **options))


def test_columns_hold_the_same_mention_of_the_same_object() -> None:
    before, after = made(word("dog"), word("cat"), word("dog")), made(word("car"), word("dog"), word("cat"))
    assert columns_of([before, after]) == [("dog", 0), ("cat", 0), ("dog", 1), ("car", 0)]


def test_heat_is_brightest_where_attention_is() -> None:
    shown = np.asarray(heat(Image.new("RGB", (40, 40), "grey"), word("dog", peak=3), (80, 80)).convert("L"))
    assert shown[60, 60] == shown.max() > shown[20, 20] + 60
    assert shown[40, 60] == pytest.approx(
        (int(shown[30, 60]) + int(shown[50, 60])) / 2, abs=25
    )  # smooth between


def test_a_sink_does_not_outshine_the_rest() -> None:
    picture = Image.new("RGB", (40, 40), "grey")
    calm = WordMap("dog", "dog", (0, 3), (0,), ((0.01, 0.0), (0.0, 0.01)))
    drained = replace(calm, attention=((0.01, 0.0), (0.0, 0.4)))
    sinks = (Sink(1, 1, 9.0),)
    assert heat(picture, drained, (80, 80), sinks).tobytes() == heat(picture, calm, (80, 80)).tobytes()
    assert heat(picture, drained, (80, 80)).tobytes() != heat(picture, calm, (80, 80)).tobytes()


def test_colours_run_from_the_first_to_the_last_and_grow_lighter() -> None:
    line = colours(np.linspace(0, 1, 50, dtype=np.float32))
    assert tuple(line[0]) == (0x15, 0x0B, 0x37) == tuple(int(HEAT[0][i : i + 2], 16) for i in (1, 3, 5))
    assert (np.diff(line @ [0.299, 0.587, 0.114]) > 0).all()


def test_a_map_does_not_hang_on_its_scale_but_its_bar_does() -> None:
    picture = Image.new("RGB", (40, 40), "grey")
    weak, strong = (heat(picture, word("dog", scale=scale), (80, 80)) for scale in (0.1, 0.9))
    assert weak.tobytes() == strong.tobytes()
    assert not np.array_equal(drawn(made(word("dog", scale=0.1))), drawn(made(word("dog", scale=0.9))))


def test_the_figure_has_a_row_for_each_map_and_a_band_for_every_six_words() -> None:
    one = drawn(made(word("dog")))
    two = drawn(made(word("dog")), made(word("dog", peak=2), method="pai"))
    names = ("dog", "cat", "car", "bus", "cow", "bed", "tie")
    bands = drawn(made(*map(word, names)))
    assert one.shape[1] == two.shape[1] == bands.shape[1] == WIDTH
    few, row = LARGE + 34 + 96, PANEL + 34 + 96
    assert two.shape[0] - one.shape[0] == few  # the second caption fits beside the picture
    assert bands.shape[0] - one.shape[0] == 2 * row - few + 20


def test_before_and_after_differ_where_their_maps_do() -> None:
    changed = drawn(made(word("dog", peak=0)), made(word("dog", peak=3), method="pai"))
    same = drawn(made(word("dog", peak=0)), made(word("dog", peak=0), method="pai"))
    rows = np.abs(changed.astype(int) - same).sum((1, 2)).nonzero()[0]
    below = MARGIN + PANEL + 36 + 34 + LARGE + 96 + 34  # where the second row of panels begins
    assert (rows[0], rows[-1]) == (below, below + LARGE - 1)


def test_shares_are_drawn_below_the_maps_with_the_words_marked() -> None:
    one = replace(made(word("dog")), shares=(0.2, 0.8, 0.5), pieces=("a", " dog", "."))
    plain = drawn(made(word("dog")))
    with_curve = drawn(one)
    assert with_curve.shape[0] - plain.shape[0] >= HEIGHT
    dogs = [mark for curve in curves_of([one], {"cat"}) for mark in curve.marks]
    assert [(mark.token, mark.word, mark.colour) for mark in dogs] == [(0, "dog", ABSENT)]
    assert {mark.colour for curve in curves_of([one], None) for mark in curve.marks} == {INK}
    assert curves_of([made(word("dog"))], None) == []


def test_sinks_are_ringed() -> None:
    plain, ringed = made(word("dog")), made(word("dog"), sinks=(Sink(1, 1, 9.0),))
    difference = np.abs(drawn(ringed).astype(int) - drawn(plain)).sum(-1)
    top = MARGIN + PANEL + 36 + 34
    panel = difference[top : top + LARGE, MARGIN : MARGIN + LARGE]
    assert panel[LARGE // 2 :, LARGE // 2 :].any()
    assert not panel[: LARGE // 2].any()
    assert not panel[:, : LARGE // 2].any()


def test_words_for_absent_objects_are_struck() -> None:
    one = AttentionMap(
        None, "a dog and a cat.", (2, 2), (replace(word("cat"), span=(12, 15)),), (), SinkRule(3.5)
    )
    struck = [piece.text for piece in caption_pieces(one, {"dog"}) if piece.struck]
    assert struck == ["cat"]
    assert not any(piece.struck for piece in caption_pieces(one, {"cat"}))
    assert not any(piece.struck for piece in caption_pieces(one, None))
    assert "".join(piece.text for piece in caption_pieces(one, {"dog"})) == "adogandacat."
    assert [piece.text for piece in caption_pieces(one, {"dog"}) if piece.glued] == ["."]


def test_text_fits() -> None:
    pieces = caption_pieces(made(), None)
    lines = list(wrap(pieces, 80, 22))
    assert len(lines) > 1
    assert [piece for line in lines for piece in line] == pieces
    assert shorten("short", 200, 20) == "short"
    assert shorten("a very long name indeed", 80, 20).endswith("…")


def test_look_on_a_model_with_words() -> None:
    model, processor = standin()
    inputs = prepare(processor, [scenes("val", 1)[0].image()], "Describe this image.")
    found = look(model, processor, inputs, VCD(noise_step=999), generation=Generation(max_new_tokens=8))
    assert found.method == "vcd:noise_step=999"
    assert found.grid == (8, 8)
    assert found.words
    for one in found.words:
        assert found.caption[slice(*one.span)] == one.word
        assert 0 < one.share < 1
