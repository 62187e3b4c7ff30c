"""Writes the tables of ``benchmarks/families.py``: which method runs on which family."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Result = Mapping[str, Any]

COLUMNS: dict[str, tuple[str, ...]] = {
    "m3id": ("m3id",),
    "vcd": ("vcd",),
    "pai": ("pai:first_layer=0", "pai:alpha=0"),
    "vhr": ("vhr",),
    "vsv": ("vsv:rows=all", "vsv:site=mlp"),
    "sla": ("sla:window=2",),
    "var": ("var",),
}
"""The specs whose outcomes a method's column sums up."""
PARTS = {"pai:alpha=0": "guidance alone", "vsv:rows=all": "all but `site=mlp`"}
"""What runs of a method where the other spec of its column is refused."""

KNOWN: dict[str, str] = {
    "qwen2_vl": "Qwen2-VL, QVQ",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL (dense)",
    "qwen3_vl_moe": "Qwen3-VL (MoE: 30B-A3B, 235B-A22B)",
    "qwen3_5": "Qwen3.5 (dense)",
    "qwen3_5_moe": "Qwen3.5 (MoE)",
    "qwen2_5_omni_thinker": "Qwen2.5-Omni, thinker",
    "qwen3_omni_moe_thinker": "Qwen3-Omni, thinker",
    "internvl": "InternVL 3 and 3.5 (checkpoints that end in -hf)",
    "gemma3": "Gemma 3 (4B and larger)",
    "gemma4": "Gemma 4",
    "gemma4:kv_shared": "Gemma 4 E2B, E4B (layers that share keys and values)",
    "gemma4_unified": "Gemma 4 12B (unified)",
    "paligemma": "PaliGemma, PaliGemma 2",
    "llava": "LLaVA-1.5, BakLLaVA, Pixtral 12B (mistral-community)",
    "llava_next": "LLaVA-NeXT (1.6)",
    "llava_next_video": "LLaVA-NeXT-Video",
    "llava_onevision": "LLaVA-OneVision",
    "video_llava": "Video-LLaVA",
    "vipllava": "ViP-LLaVA",
    "smolvlm": "SmolVLM2",
    "idefics3": "Idefics 3, SmolVLM",
    "idefics2": "Idefics 2",
    "mistral3": "Mistral Small 3.1 and 3.2, Ministral 3",
    "llama4:repaired": "Llama 4 Scout, Maverick (but for a fault of transformers, see below)",
    "mllama": "Llama 3.2 Vision",
    "glm4v": "GLM-4.1V, GLM-4.6V-Flash",
    "glm4v_moe": "GLM-4.5V, GLM-4.6V",
    "glm46v": "GLM-4.6V (under its own type)",
    "glm_ocr": "GLM-OCR",
    "kimi_k25": "Kimi K2.5, K2.6",
    "ovis2": "Ovis2",
    "aria": "Aria",
    "molmo2": "Molmo 2",
    "deepseek_vl": "DeepSeek-VL 1.3B",
    "deepseek_vl_hybrid": "DeepSeek-VL 7B",
    "deepseek_ocr2": "DeepSeek-OCR-2",
    "minicpmv4_6": "MiniCPM-V 4.6",
    "lfm2_vl": "LFM2-VL",
    "paddleocr_vl": "PaddleOCR-VL",
    "granite4_vision": "Granite 4 Vision",
    "aya_vision": "Aya Vision",
    "cohere2_vision": "Command A Vision",
    "ernie4_5_vl_moe": "ERNIE 4.5 VL",
    "video_llama_3": "VideoLLaMA 3",
    "chameleon": "Chameleon",
    "fuyu": "Fuyu",
}
"""The families that people ask for first, by type, with names that they know."""
NOT_MAPPED = {
    "phi4_multimodal": "Phi-4-multimodal",
    "kimi_vl": "Kimi-VL",
    "minicpmv": "MiniCPM-V before 4.6",
    "deepseek_vl_v2": "DeepSeek-VL2",
}
"""Families that people ask for, but that are not among the types which transformers maps to image-text-to-text."""

MEANS = {
    "it has a generate() of its own": "Refused by name: this `generate` passes by what methods put in place.",
    "it is an encoder-decoder": "Refused by name: methods are defined on decoders that read picture and text.",
    "its configuration names no image token": "Refused by name: no tokens of the prompt stand for the picture.",
    "it generates no text": "Refused by name.",
    "networks, which have one size": "Not checked: a model of full size would be needed. Nothing is known against it.",
    "'image_outputs'": "Not checked as it is: every forward pass of this version's `Llama4ForConditionalGeneration` raises"
    " `AttributeError`, with a picture and without, since it reads `image_outputs` of an output that has none. The variant"
    " `llama4:repaired` gives the output this attribute, and is checked instead. Its beam search with a picture raises in"
    " plain transformers as well, so that beams are left out there.",
}
"""What it means that no tiny model was built, by a piece of the reason."""


def facts(result: Result) -> str:
    """What was measured, with which versions, and how often each result came out."""
    counted, versions, hardware = result["counts"], result["versions"], result["hardware"]
    built = counted["types"] - counted["types_not_built"]
    return (
        f"Measured on tiny models with random weights (not on published checkpoints), one of each of {built} of the"
        f" {counted['types']} types that transformers {versions['transformers']} maps to image-text-to-text generation, and"
        f" of {counted['variants']} variants; {len(result['specs'])} settings of {len(COLUMNS)} methods on each"
        f" ({', '.join(f'`{spec}`' for spec in result['specs'])}), {result['tokens']} tokens a run, float32, seed"
        f" {result['seed']}. Of all runs {counted['works']} work, {counted['no effect']} agree but have nothing to do on"
        f" these inputs, {counted['refused']} are refused by name and {counted['wrong']} are wrong."
        f" {hardware['threads']} thread of {hardware['cpu']}, torch {versions['torch']}, transformers"
        f" {versions['transformers']}, Keepsight {versions['keepsight']}; `{result['command']}`."
    )


def known(result: Result) -> str:
    """The families that people ask for first, with a column for each method."""
    lines = [
        f"| Family | Type in transformers | {' | '.join(f'`{name}`' for name in COLUMNS)} |",
        "|---|---|" + "---|" * len(COLUMNS),
    ]
    for name, people_say in KNOWN.items():
        lines.append(f"| {people_say} | `{name}` | {' | '.join(cells(result['models'][name]))} |")
    return "\n".join([*lines, "", facts(result)]) + "\n"


def others(result: Result) -> str:
    """All other types and variants that were built, together where the same runs on them."""
    together: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, row in result["models"].items():
        if "methods" in row and name not in KNOWN:
            together[cells(row)].append(name)
    lines = [
        f"| Types | {' | '.join(f'`{name}`' for name in COLUMNS)} |",
        "|---|" + "---|" * len(COLUMNS),
    ]
    for row, names in sorted(together.items(), key=lambda item: -len(item[1])):
        lines.append(f"| {_listed(names)} | {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def refusals(result: Result) -> str:
    """Every method that is refused, has nothing to do or is wrong on a type that was built, and why."""
    why: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, row in result["models"].items():
        for spec, one in row.get("methods", {}).items():
            if one["result"] != "works":
                reason = "; ".join(map(_short, one.get("reasons", ["nothing to do on these inputs"])))
                why[one["result"], reason][name].append(spec)
    lines = ["| Result | Types | Methods | Reason |", "|---|---|---|---|"]
    for (kind, reason), found in why.items():
        by_specs: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for name, specs in found.items():
            by_specs[tuple(specs)].append(name)
        for specs, names in by_specs.items():
            lines.append(f"| {_shout(kind)} | {_listed(names)} | {_listed(specs)} | {_cell(reason)} |")
    return "\n".join(lines) + "\n"


def left_out(result: Result) -> str:
    """Which checks were left out on which types, and why: everything else was compared on all that were built."""
    together: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, row in result["models"].items():
        if why := row.get("why_no_batch"):
            together["padded batch", _short(why)].append(name)
        told = {tuple(map(_short, text.split(": ", 1))) for text in _left_out(row)}
        for check, reason in sorted(told):
            together[check, reason].append(name)
    lines = ["| Left out | Types | Why |", "|---|---|---|"]
    lines += [f"| {check} | {_listed(names)} | {_cell(why)} |" for (check, why), names in together.items()]
    return "\n".join(lines) + "\n"


def _left_out(row: Mapping[str, Any]) -> Iterator[str]:
    for one in row.get("methods", {}).values():
        yield from one.get("left_out", ())


def not_built(result: Result) -> str:
    """The types of which no tiny model was built, by what that means."""
    together: dict[str, list[str]] = defaultdict(list)
    for name, row in result["models"].items():
        if "not_built" in row:
            together[meaning(row["not_built"])].append(name)
    lines = ["| Types | Why | What it means |", "|---|---|---|"]
    for means, names in together.items():
        (reason,) = {result["models"][name]["not_built"] for name in names}
        said = reason if len(reason) < 120 else "a fault of transformers"
        lines.append(f"| {_listed(names)} | {_cell(said)} | {means} |")
    return "\n".join(lines) + "\n"


def not_mapped() -> str:
    """The families that people ask for, but that are not mapped."""
    return f"Not among these types, and so not checked: {', '.join(NOT_MAPPED.values())}.\n"


def meaning(reason: str) -> str:
    """What a reason for which no model was built means.

    Raises:
        ValueError: it is a new one, of which nobody has said what it means.
    """
    for piece, means in MEANS.items():
        if piece in reason:
            return means
    raise ValueError(f"family_tables.MEANS does not say what this means: {reason}")


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What a method's column says of one model, for every method."""
    return tuple(cell({spec: row["methods"][spec]["result"] for spec in specs}) for specs in COLUMNS.values())


def cell(results: Mapping[str, str]) -> str:
    """One word for the results of a method's specs on one model."""
    found = set(results.values())
    if "wrong" in found:
        return "**WRONG**"
    working = [spec for spec, one in results.items() if one == "works"]
    if len(working) == len(results):
        return "yes"
    if found == {"refused"}:
        return "no"
    if not working:
        return "no effect"
    return " and ".join(PARTS[spec] for spec in working)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _shout(kind: str) -> str:
    return "**WRONG**" if kind == "wrong" else kind


def _short(reason: str) -> str:
    """A reason without the name of the class or method that it begins with, so that equal ones stand together."""
    text = re.sub(r"^(\w+ cannot be used with \w+|\w+): ", "", reason)
    text = re.sub(
        r"(layer) \d+ (has) \d+ states of width \d+ for the \d+ tokens",
        r"a \1 \2 several states for each token",
        text,
    )
    text = re.sub(r"but \w+ is not among", "but its decoder is not among", text)
    return re.sub(r"decoder layer \d+", "a decoder layer", text)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
