"""Under which precisions, devices, caches, inputs and ways to run each method works, is refused, or was not tried.

Every row that says *works* or *refused* names the tests that show it, and ``tests/benchmarks/test_support.py`` fails where
one of them does not exist. ``python benchmarks/support.py junit.xml`` keeps what ``make quantised`` found, with the versions
of packages that are no dependency, in ``benchmarks/results/quantised.json``.
"""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "quantised.json"
PACKAGES = ("bitsandbytes", "torchao", "optimum-quanto", "hqq", "peft", "accelerate", "torch", "transformers")
METHODS = ("vcd", "m3id", "pai", "var", "vhr", "vsv", "sla")
WORKS, REFUSED, UNTRIED = "works", "refused", "not tried"
HF = "tests/engines/hf/"
SETTINGS, CONFORMANCE, DEVICES, QUANTISED = (
    f"{HF}test_{name}.py" for name in ("settings", "conformance", "devices", "quantised")
)


@dataclass(frozen=True)
class Row:
    """One setting.

    Attributes:
        name: the setting.
        all: what becomes of a method that ``but`` does not name.
        note: what happens, and to what the result was compared; of a setting that was not tried, why.
        tests: the tests that show it, as ``file::function``.
        but: by method, what becomes of it where that is something else.
        package: the packages that the setting needs and that are no dependency, joined with a comma.
    """

    name: str
    all: str
    note: str
    tests: tuple[str, ...] = ()
    but: Mapping[str, str] = field(default_factory=dict)
    package: str = ""

    def status(self, method: str) -> str:
        return self.but.get(method, self.all)


def _refused(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, REFUSED)


NO_GPU = "no GPU was at hand"
EDITS = ("pai", "var", "vhr", "vsv", "sla")
"""Methods that act inside the model, at their defaults."""

TABLE: dict[str, tuple[Row, ...]] = {
    "Inputs": (
        Row(
            "several pictures in a prompt", WORKS,
            "Edits agree with the slow restatement, contrasts with recomputation, and a row of a batch with the row alone,"
            " also where another row has another number of pictures. VCD draws the same noise for pictures of one shape.",
            (
                f"{CONFORMANCE}::test_several_pictures_in_one_prompt",
                f"{SETTINGS}::test_rows_with_one_picture_and_with_two",
                f"{SETTINGS}::test_contrasts_of_two_pictures_recomputed",
                "tests/attention_mods/test_var.py::test_paper_restated",
                "tests/attention_mods/test_pai.py::test_attention_part_restated",
            ),
        ),
        Row(
            "video, alone or beside pictures", REFUSED,
            "`InputError` names the inputs that belong to a video.",
            (f"{SETTINGS}::test_video_is_refused_also_beside_pictures",),
        ),
        Row(
            "batch padded on the left", WORKS, "A row of a batch equals the row alone.",
            (f"{CONFORMANCE}::test_row_of_a_padded_batch_equals_the_row_alone",),
        ),
        Row(
            "batch padded on the right", REFUSED, "`InputError`: use `padding_side='left'`.",
            ("tests/test_api.py::test_prompts_that_no_method_can_use",),
        ),
    ),
    "Precision of the weights": (
        Row(
            "float32", WORKS, "All comparisons with restatements and recomputation are made in it.",
            (f"{CONFORMANCE}::test_strong_changes_tokens_and_leaves_the_model_bitwise_as_before",),
        ),
        Row(
            "bfloat16 on the CPU", WORKS,
            "First scores lie beside those of float32; some decisions differ, see above.",
            (
                f"{SETTINGS}::test_half_precision_does_what_float32_does",
                f"{CONFORMANCE}::test_bfloat16_models_stay_bfloat16",
                f"{DEVICES}::test_bfloat16",
            ),
        ),
        Row(
            "float16 on the CPU", WORKS,
            "First scores lie beside those of float32; few decisions differ, see above.",
            (f"{SETTINGS}::test_half_precision_does_what_float32_does",),
        ),
        Row(
            "bitsandbytes, NF4", WORKS,
            "First scores lie beside those of a float32 model of the weights that quantisation left (the 4-bit kernel on the"
            " CPU multiplies in less than float32).",
            (f"{QUANTISED}::test_bitsandbytes_nf4",), package="bitsandbytes",
        ),
        Row(
            "bitsandbytes, LLM.int8()", WORKS,
            "It rounds a token after its neighbours: amateurs run apart, and `fused=True` is refused by name.",
            (f"{QUANTISED}::test_bitsandbytes_int8",), package="bitsandbytes",
        ),
        Row(
            "torchao, int8 weights", WORKS, "Same tokens as in a float32 model of the weights that quantisation left.",
            (f"{QUANTISED}::test_torchao_int8_weights",), package="torchao",
        ),
        Row(
            "torchao, int4 weights (`IntxWeightOnlyConfig`)", WORKS,
            "Same tokens as in a float32 model of the weights that quantisation left.",
            (f"{QUANTISED}::test_torchao_int4_weights",), package="torchao",
        ),
        Row(
            "torchao, int4 weights (`Int4WeightOnlyConfig`)", UNTRIED,
            "Its packings need a GPU, or a package of kernels, and were refused by torchao itself on the CPU.",
        ),
        Row(
            "torchao, int8 weights and activations", WORKS,
            "Amateurs that share passes give the same tokens as amateurs that run apart.",
            (f"{QUANTISED}::test_torchao_int8_weights_and_activations",), package="torchao",
        ),
        Row(
            "optimum-quanto, int8 and int4 weights", WORKS,
            "Same tokens as in a float32 model of the weights that quantisation left.",
            (f"{QUANTISED}::test_quanto_weights",), package="optimum-quanto",
        ),
        Row("HQQ weights", UNTRIED, "transformers 5.24 answers that HQQ is not available yet."),
        Row("GPTQ, AWQ, FP8", UNTRIED, f"Their kernels need a GPU; {NO_GPU}."),
    ),
    "Devices": (
        Row(
            '`device_map` of one place (`{"": "cpu"}`, `"auto"` without a GPU)', WORKS, "Same tokens as without one.",
            (f"{SETTINGS}::test_a_device_map_of_one_place", f"{DEVICES}::test_a_model_dispatched_to_one_device"),
        ),
        Row(
            "weights offloaded to the CPU (Accelerate)", WORKS, "Same tokens as without offloading.",
            (f"{DEVICES}::test_weights_offloaded_by_accelerate",),
        ),
        Row(
            "weights offloaded to the disk, model spread over places", WORKS,
            "Same tokens; amateurs run apart, and `fused=True` is refused by name.",
            (f"{DEVICES}::test_a_model_spread_over_places_runs_apart_or_is_refused",),
        ),
        Row("CUDA, ROCm, MPS", UNTRIED, f"The code names no device, but {NO_GPU}."),
        Row("tensor parallelism (`tp_plan`), FSDP, DeepSpeed", UNTRIED, "No test starts several processes."),
    ),
    "Caches": (
        Row(
            'static cache (`cache_implementation="static"`)', WORKS,
            "Same tokens as with the default cache. Amateurs keep a growing cache of their own.",
            (f"{DEVICES}::test_static_cache", f"{CONFORMANCE}::test_the_way_of_running_does_not_change_the_answer"),
        ),
        Row(
            'quantised cache (`cache_implementation="quantized"`, quanto 2 and 4 bits, HQQ 4 bits)', WORKS,
            "Off changes nothing, and sharing passes changes nothing. Amateurs' own caches are not quantised.",
            (f"{QUANTISED}::test_quantised_cache",), package="optimum-quanto, hqq",
        ),
        Row(
            "offloaded cache", UNTRIED,
            "transformers moves its layers on streams of a GPU, and fails without one, with a method or without.",
        ),
        Row(
            "`use_cache=False`", WORKS, "Same tokens; amateurs run apart.",
            (f"{CONFORMANCE}::test_the_way_of_running_does_not_change_the_answer",),
        ),
        Row(
            "a cache that is filled already", REFUSED, "`InputError`: pass the whole prompt without one.",
            ("tests/test_target.py::test_refusals",),
        ),
    ),
    "Attention of the decoder": (
        Row(
            "`sdpa`", WORKS, "The default, which all other tests run on.",
            (f"{CONFORMANCE}::test_strong_changes_tokens_and_leaves_the_model_bitwise_as_before",),
        ),
        Row(
            "flash attention, by its interface", WORKS,
            "Same tokens, on a kernel in plain operations that is called, and masked, as transformers calls a flash kernel.",
            (f"{SETTINGS}::test_a_kernel_with_the_interface_of_flash_attention",),
        ),
        Row("flash attention, the kernels themselves", UNTRIED, f"They need a GPU; {NO_GPU}."),
        Row(
            "`eager`, `flex_attention`", WORKS,
            "Same tokens as `sdpa` (flex attention uncompiled). Methods that act in attention are refused by name, with the"
            " call that sets `sdpa`.",
            (f"{SETTINGS}::test_other_kernels_give_the_same_or_are_refused",), _refused("pai", "var", "vhr"),
        ),
    ),
    "Compiling": (
        Row(
            "a model wrapped by `torch.compile`", REFUSED, "`UnsupportedModel` names the wrapper.",
            (f"{CONFORMANCE}::test_a_compiled_wrapper_is_refused_by_name",),
        ),
        Row(
            "`model.compile()`, a compiled `forward`, a compiled decoder or layer", WORKS,
            "Contrasts run apart. A compiled pass leaves out hooks that were not there when it was compiled, so that methods"
            " that act inside the model are refused by name. The vision tower and the output projection may be compiled.",
            (
                f"{SETTINGS}::test_edits_of_a_model_that_was_compiled_in_place_are_refused",
                f"{SETTINGS}::test_contrasts_of_a_model_that_was_compiled_in_place",
                f"{SETTINGS}::test_which_compiled_module_matters",
            ),
            _refused(*EDITS),
        ),
        Row(
            "`compile_config` with a static cache", WORKS, "Contrasts run apart; the others are refused by name.",
            (
                f"{DEVICES}::test_compiled_steps", f"{DEVICES}::test_shared_passes_refuse_compiled_steps",
                f"{HF}test_fused_pass.py::test_methods_inside_the_model_refuse_compiled_steps",
            ),
            _refused(*EDITS),
        ),
        Row(
            "steps that transformers compiles by itself (static cache on a GPU)", UNTRIED,
            f"`mitigate` and `attached` turn it off, which the suite tests without a GPU; {NO_GPU}.",
        ),
    ),
    "Model": (
        Row(
            "training mode, gradient checkpointing", WORKS,
            "Same tokens, at a dropout of 0. At any other, plain generation is random too, and the rows of attention that"
            " PAI and VAR compute anew leave dropout out.",
            (f"{SETTINGS}::test_a_model_in_training_mode",),
        ),
        Row("`torch.inference_mode()`", WORKS, "Same tokens as outside of it.", (f"{SETTINGS}::test_inference_mode",)),
        Row(
            "a `PeftModel`", REFUSED, "`UnsupportedModel`: pass `model.get_base_model()`.",
            (f"{QUANTISED}::test_a_peft_model_is_refused_and_its_base_model_has_the_adapters",), package="peft",
        ),
        Row(
            "its base model, with LoRA adapters in place", WORKS, "Same tokens as with the adapters merged.",
            (f"{QUANTISED}::test_a_peft_model_is_refused_and_its_base_model_has_the_adapters",), package="peft",
        ),
    ),
    "Search": (
        Row(
            "beam search, `num_return_sequences`", WORKS, "A row of a batch equals the row alone.",
            (f"{CONFORMANCE}::test_rows_alone_under_beam_search_and_several_sequences",),
        ),
        Row(
            "`prefill_chunk_size`", WORKS,
            "Same tokens; not compared on Gemma 3, where transformers itself gives other logits in chunks. VHR selects heads"
            " in one pass over the prompt, and is refused by name.",
            (f"{CONFORMANCE}::test_the_way_of_running_does_not_change_the_answer",), _refused("vhr"),
        ),
        Row(
            "assisted decoding: prompt lookup", WORKS, "Same tokens.",
            (f"{CONFORMANCE}::test_the_way_of_running_does_not_change_the_answer",),
        ),
        Row(
            "assisted decoding: a draft model", WORKS,
            "Same tokens as without drafts. The draft model is not mitigated.",
            (f"{SETTINGS}::test_a_draft_model",),
        ),
        Row(
            "continuous batching (`generate_batch`, a paged cache)", REFUSED, "`InputError`: it would pass the methods by.",
            ("tests/test_api.py::test_ways_to_generate_past_the_methods_are_refused",),
        ),
    ),
}  # fmt: skip
"""The rows, by the heading of their part of the table."""


def named_tests() -> set[str]:
    """Returns every test that a row names."""
    return {test for rows in TABLE.values() for row in rows for test in row.tests}


def cell(row: Row, method: str) -> str:
    """Returns what stands in a method's column."""
    return {WORKS: "yes", REFUSED: "refused", UNTRIED: "–"}[row.status(method)]


def packages(row: Row) -> list[str]:
    """Returns the packages that a row needs and that are no dependency."""
    return [name for name in row.package.split(", ") if name]


def evidence(row: Row, result: Mapping[str, Any]) -> str:
    """Returns the tests of a row by name, and the versions of the packages that they need."""
    names = ", ".join(f"`{test.partition('::')[2]}`" for test in row.tests)
    return "; ".join([names, *(f"{name} {result['versions'][name]}" for name in packages(row))])


def table(result: Mapping[str, Any]) -> str:
    """Returns the table of all settings.

    Args:
        result: what ``record`` has written.
    """
    heads = " | ".join(name.upper() for name in METHODS)
    lines = [f"| Setting | {heads} | What happens | Tests |", "|---|" + "---|" * (len(METHODS) + 2)]
    for heading, rows in TABLE.items():
        lines.append(f"| **{heading}** |" + " |" * (len(METHODS) + 2))
        for row in rows:
            cells = " | ".join(cell(row, method) for method in METHODS)
            note = f"not tried: {row.note}" if row.all == UNTRIED else row.note
            lines.append(f"| {row.name} | {cells} | {note} | {evidence(row, result)} |")
    return "\n".join([*lines, "", facts(result)]) + "\n"


def facts(result: Mapping[str, Any]) -> str:
    """Returns what the words of the table mean, and how the tests that need other packages were run."""
    versions, machine = result["versions"], result["hardware"]
    passed, failed, skipped = (
        sum(found[key] for found in result["tests"].values()) for key in ("passed", "failed", "skipped")
    )
    return (
        "*yes*: it works; *refused*: an error by name, before anything is generated; –: not tried. Tests beside a package's"
        f" version were run with it by `make quantised`: {passed} passed, {failed} failed and {skipped} were skipped (torch"
        f" {versions['torch']}, transformers {versions['transformers']}, {machine['cpu']}, without a GPU)."
    )


def outcomes(report: str) -> dict[str, dict[str, int]]:
    """Returns by test function how often it passed, failed and was skipped, from a report in JUnit's XML."""
    found: dict[str, dict[str, int]] = {}
    for case in ElementTree.fromstring(report).iter("testcase"):
        name = str(case.get("name")).partition("[")[0]
        row = found.setdefault(name, {"passed": 0, "failed": 0, "skipped": 0})
        kinds = {child.tag for child in case}
        failed = bool(kinds & {"failure", "error"})
        row["failed" if failed else "skipped" if "skipped" in kinds else "passed"] += 1
    return found


def record(report: Path) -> None:
    """Write what a run of the tests found into ``benchmarks/results/quantised.json``."""
    from importlib.metadata import PackageNotFoundError, version

    from keepsight.experiments.environment import hardware

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            raise SystemExit(f"{package} is not installed: run `make quantised`") from None
    result = {"tests": outcomes(report.read_text()), "versions": versions, "hardware": hardware("cpu")}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {RESULT}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(f"usage: {sys.argv[0]} JUNIT-REPORT")
    record(Path(sys.argv[1]))
