"""What ``keepsight bench`` measures with: worked times, peers that compute what the methods compute, plans, peaks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from families import FAMILIES

from keepsight import UnsupportedModel
from keepsight.errors import InputError
from keepsight.experiments.latency.measure import (
    Clock,
    Timing,
    figures,
    measure,
    measurements,
    once,
    split,
)
from keepsight.experiments.latency.memory import MemoryNotMeasured, peak_mib
from keepsight.experiments.latency.report import cells, markdown
from keepsight.experiments.latency.run import over
from keepsight.experiments.latency.subjects import SHAPES, Source, build, tiles
from keepsight.experiments.latency.variants import PLAIN, Way, plan
from keepsight.reports.latency_figure import draw

TINY = {
    "text": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 32064},
    "vision": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
}  # fmt: skip
SOURCE = Source(shape=TINY, image_tokens=16)


@pytest.fixture(scope="module")
def subject() -> Any:
    return build(SOURCE)


def test_prefill_is_what_two_tokens_took_less_one_and_a_token_the_mean_of_the_rest() -> None:
    # M3ID's separate branch is prefilled with the second token: 10 + (1 + 4), then tokens of 1 s, one of them skipped
    assert split([0.0, 10.0, 15.0, 16.0, 17.0, 17.5, 18.5]) == pytest.approx((15 - 0.875, 0.875))


def test_figures_are_medians_of_neighbours_ratios() -> None:
    def pair(prefill: float, token: float, slower: float) -> tuple[Timing, Timing]:
        return Timing(prefill=prefill, token=token), Timing(prefill=prefill * slower, token=token * slower)

    # A machine ten times slower for one pair changes no ratio
    found = figures([pair(1.0, 0.1, 2.0), pair(10.0, 1.0, 2.5), pair(1.0, 0.1, 1.0)], batch=4)
    assert found["prefill_ratio"] == found["decode_ratio"] == pytest.approx(2.0)
    assert found["decode_spread"] == pytest.approx([1.0, 2.5])
    assert found["plain_token_ms"] == pytest.approx(100)
    assert found["token_ms"] == pytest.approx(200)
    assert found["plain_tokens_per_second"] == pytest.approx(40)
    assert found["tokens_per_second"] == pytest.approx(20)


def test_the_clock_reads_after_every_token_and_never_stops() -> None:
    watch = Clock(torch.device("cpu"))
    assert not watch(torch.zeros(3, 5, dtype=torch.long), None).any()
    assert len(watch.readings) == 2
    assert watch.readings[1] >= watch.readings[0]


@pytest.mark.parametrize(
    ("count", "cut"),
    [(576, (1, 24)), (2880, (5, 24)), (256, (1, 16)), (144, (1, 12)), (1152, (2, 24)), (16, (1, 4))],
)
def test_visual_tokens_are_cut_into_square_pictures(count: int, cut: tuple[int, int]) -> None:
    assert tiles(count) == cut
    assert cut[0] * cut[1] ** 2 == count


@pytest.mark.parametrize("count", [-1, 0, 15, 577])
def test_other_numbers_are_refused_with_one_that_works(count: int) -> None:
    with pytest.raises(InputError, match="try ") as error:
        tiles(count)
    assert tiles(int(str(error.value).rsplit(" ", 1)[1]))


def test_shapes_are_as_large_as_they_are_called() -> None:
    for name, low, high in (("130m", 110e6, 150e6), ("1b", 0.9e9, 1.5e9), ("7b", 6.5e9, 7.5e9)):
        total = 0
        for part, gates in (("text", 3), ("vision", 2)):
            shape = SHAPES[name][part]
            width, heads = shape["hidden_size"], shape["num_attention_heads"]
            shared = shape.get("num_key_value_heads", heads) / heads
            layer = (2 + 2 * shared) * width**2 + gates * width * shape["intermediate_size"]
            total += shape["num_hidden_layers"] * layer + 2 * shape.get("vocab_size", 0) * width
        assert low < total < high, name


def test_several_pictures_a_row_run(subject: Any) -> None:
    several = build(Source(shape=TINY, image_tokens=2880))
    inputs = several.inputs(2)
    assert inputs["pixel_values"].shape == (10, 3, 336, 336)
    assert (inputs["input_ids"] == 32000).sum(-1).tolist() == [2880, 2880]
    assert len(subject.inputs(3)["input_ids"]) == 3


def test_text_stands_before_and_after_the_picture(subject: Any) -> None:
    inputs = subject.inputs(2)
    assert (inputs["input_ids"][1] == 32000).nonzero().flatten().tolist() == list(range(5, 5 + 16))
    assert inputs["input_ids"].shape == (2, 5 + 16 + 35)


def test_every_way_to_run_a_contrast_gives_the_same_tokens(subject: Any) -> None:
    inputs = subject.inputs(2)
    for spec in ("vcd:beta=0.0,noise_step=999", "m3id:decay=0.5,cutoff=0.0", "pai:gamma=3.0"):
        greedy = once(subject.model, inputs, PLAIN, new=8).tokens
        said = {
            kind: once(subject.model, inputs, Way(kind=kind, method=spec), new=8).tokens
            for kind in ("naive", "separate", "fused")
        }
        assert said["naive"] == said["separate"] == said["fused"], spec
        assert said["naive"] != greedy, spec


def test_guidance_of_transformers_computes_pais_guidance_but_for_its_cutoff(subject: Any) -> None:
    from keepsight.attention_mods.pai import guide
    from keepsight.experiments.latency.variants import GUIDANCE, opened
    from keepsight.target import Target

    inputs = subject.inputs(1)
    with torch.no_grad(), opened(subject.model, inputs, Way(kind="cfg")) as options:
        without = Target(subject.model, inputs).without_image()
        amateur = subject.model(**without).logits[:, -1]
        expert = subject.model(**inputs).logits[:, -1]
        ours = guide(expert, amateur, GUIDANCE)
        theirs = options["logits_processor"][0](inputs["input_ids"], expert)
    kept = ours > -math.inf
    torch.testing.assert_close(theirs[kept], ours[kept], rtol=1e-4, atol=1e-4)


def test_eager_leaves_the_model_as_it_was(subject: Any) -> None:
    text = subject.model.config.get_text_config()
    before = text._attn_implementation
    plain = once(subject.model, subject.inputs(1), PLAIN, new=8).tokens
    assert once(subject.model, subject.inputs(1), Way(kind="eager"), new=8).tokens == plain
    assert once(subject.model, subject.inputs(1), Way(kind="static"), new=8).tokens == plain
    assert text._attn_implementation == before == "sdpa"


def test_a_plan_says_what_it_leaves_out(subject: Any) -> None:
    inputs = subject.inputs(1)
    peers = ("naive", "cfg", "eager", "static")
    ways, notes = plan(subject.model, inputs, ["vcd", "vhr"], peers=peers)
    assert [way.kind for way in ways] == ["naive", "separate", "fused", "edit", "eager", "static"]
    assert notes == ["no row for guidance_scale: none of the methods contrasts with the text alone"]
    ways, notes = plan(subject.model, inputs, ["m3id"], fused="on", peers=("cfg",))
    assert [way.kind for way in ways] == ["fused", "cfg"]
    ways, _ = plan(subject.model, inputs, ["m3id"], fused="off")
    assert [way.kind for way in ways] == ["separate"]


def test_a_model_that_cannot_be_fused() -> None:
    family = FAMILIES["mllama"]
    inputs = family.inputs([[1, 10, 11]])
    ways, notes = plan(family.model(), inputs, ["vcd"])
    assert [way.kind for way in ways] == ["separate"]
    assert notes[0].startswith("vcd: not fused, ")
    ways, _ = plan(family.model(), inputs, ["vcd"], fused="on")
    with pytest.raises(UnsupportedModel, match="fused=True"):
        once(family.model(), inputs, ways[0], new=8)


def test_compiled_steps_refuse_methods_that_edit(subject: Any) -> None:
    with pytest.raises(InputError, match="a compiled step knows nothing"):
        once(subject.model, subject.inputs(1), Way(kind="edit", method="vhr"), new=8, cache="compiled")


def test_measured_rows(subject: Any) -> None:
    ways, _ = plan(subject.model, subject.inputs(1), ["m3id", "sla:window=1"], peers=("naive",))
    steps: list[int] = []
    rows = measure(
        subject.model, subject.inputs(1), ways, new=8, repeats=2, clock="cpu", advance=steps.append
    )
    assert sum(steps) == measurements(len(ways), 2)
    assert [(row["method"], row["way"], row["fused"], row["same_tokens"]) for row in rows] == [
        ("m3id", "naive", False, None),
        ("m3id", "separate", False, True),
        ("m3id", "fused", True, True),
        ("sla:window=1", "edit", None, None),
    ]
    for row in rows:
        assert row["prompt_tokens"] == 16 + 40
        assert row["decode_spread"][0] <= row["decode_ratio"] <= row["decode_spread"][1]
        assert row["tokens_per_second"] == pytest.approx(1000 / row["token_ms"])


@pytest.mark.slow
def test_peak_memory_sees_a_second_cache_and_no_cache_for_a_picture_that_is_not_there() -> None:
    # 24 layers x 2 x 256 wide x 1,480 tokens x 4 bytes: a cache of 69 MiB, so that little else matters
    shape = {
        "text": {**TINY["text"], "hidden_size": 256, "intermediate_size": 64, "num_hidden_layers": 24,
                 "num_attention_heads": 8, "num_key_value_heads": 8},
        "vision": TINY["vision"],
    }  # fmt: skip
    source = Source(shape=shape, image_tokens=1440)
    plain, naive, text = (
        peak_mib(source, {"kind": kind, "method": method}, batch=1, new=8, threads=1)
        for kind, method in (("plain", ""), ("naive", "vcd"), ("separate", "m3id"))
    )
    assert 69 < plain < 200
    assert naive - plain == pytest.approx(69, rel=0.25)
    assert abs(text - plain) < 15


def test_a_process_that_cannot_measure_says_why() -> None:
    with pytest.raises(MemoryNotMeasured, match=r"no method 'nothing'.*--no-memory"):
        peak_mib(SOURCE, {"kind": "fused", "method": "nothing"}, batch=1, new=8, threads=1)


def test_a_peak_too_small_for_a_ratio_has_none() -> None:
    assert over(20.0, 10.0) == 2
    assert over(3.0, 2.0) is None
    assert over(None, 10.0) is None


def result(**changes: Any) -> dict[str, Any]:
    row = {
        "method": "vcd", "way": "fused", "fused": True, "batch": 1, "prompt_tokens": 616, "new_tokens": 32,
        "image_tokens": 576, "cache": "dynamic", "prefill_ms": 30.0, "plain_prefill_ms": 20.0, "prefill_ratio": 1.5,
        "prefill_spread": [1.4, 1.6], "token_ms": 6.0, "plain_token_ms": 5.0, "decode_ratio": 1.2,
        "decode_spread": [1.1, 1.3], "tokens_per_second": 166.7, "plain_tokens_per_second": 200.0, "peak_mib": 30.0,
        "plain_peak_mib": 20.0, "memory_ratio": 1.5, "same_tokens": True,
    }  # fmt: skip
    return {
        "subject": "random weights, shape 130m",
        "settings": {"device": "cpu", "dtype": "float32", "cache": "dynamic", "clock": "wall", "repeats": 5},
        "hardware": {"cpu": "A CPU", "cores": 2, "threads": 1, "device": "cpu", "gpus": []},
        "versions": {"keepsight": "0", "torch": "1", "transformers": "2", "python": "3"},
        "notes": [],
        "rows": [row, {**row, **changes}],
    }


def test_a_row_in_words() -> None:
    assert cells(result()["rows"][0]) == [
        "`vcd`", "fused", "1", "616 + 32", "1.50× [1.40, 1.60]", "1.20× [1.10, 1.30]", "5.00 → 6.00", "200.0 → 166.7",
        "1.50× (20 → 30 MiB)",
    ]  # fmt: skip
    assert cells({**result()["rows"][0], "memory_ratio": None})[-1] == ""
    text = markdown(result())
    assert text.endswith(
        "A CPU, 1 thread; wall time, median of 5 [min, max]; torch 1, transformers 2, Keepsight 0.\n"
    )


@pytest.mark.parametrize("changes", [{"way": "separate"}, {"new_tokens": 256}, {"prompt_tokens": 2920}])
def test_plots_are_pictures(changes: dict[str, Any]) -> None:
    import io

    from PIL import Image

    with Image.open(io.BytesIO(draw(result(**changes)))) as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 50
