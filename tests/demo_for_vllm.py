"""The demo checkpoint as vLLM takes it, computing the same function.

vLLM wants other names for the vision tower's weights, and its attention on CPUs takes no heads of 16. Heads are padded with
zeros to 64: the rotary pair (j, j + 8) of 16 goes to (4j, 4j + 32) of 64, whose frequency θ^(−2·4j/64) is the old
θ^(−2j/16), and queries are doubled, since scores are divided by √64 in place of √16.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

HEAD = 64


def convert(source: Path, folder: Path) -> Path:
    """Writes the checkpoint in ``source`` for vLLM into ``folder``, in float32, and returns ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and file.name not in {"model.safetensors", "config.json"}:
            shutil.copy(file, folder / file.name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    text = config["text_config"]
    weights = load_file(source / "model.safetensors")
    new = {_renamed(name): _padded(name, value.float(), text) for name, value in weights.items()}
    text["head_dim"] = HEAD
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    save_file(new, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _renamed(name: str) -> str:
    return name if ".vision_model." in name else name.replace("vision_tower.", "vision_tower.vision_model.")


def _padded(name: str, weight: Tensor, text: dict[str, int]) -> Tensor:
    old, heads = text["head_dim"], text["num_attention_heads"]
    each, half = HEAD // old, old // 2
    place = torch.tensor([each * j if j < half else each * (j - half) + HEAD // 2 for j in range(old)])
    if "language_model" not in name:
        return weight.contiguous()
    if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
        rows = torch.zeros(heads, HEAD, weight.shape[1])
        rows[:, place] = weight.view(heads, old, -1)
        return (rows * (each**0.5 if "q_proj" in name else 1)).reshape(heads * HEAD, -1)
    if name.endswith("o_proj.weight"):
        columns = torch.zeros(weight.shape[0], heads, HEAD)
        columns[:, :, place] = weight.view(-1, heads, old)
        return columns.reshape(weight.shape[0], -1)
    return weight.contiguous()
