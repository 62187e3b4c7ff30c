"""A random LLaVA of the demo's shape whose vocabulary is object words: it hallucinates wildly, and needs no training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

OBJECTS = (
    "oven",
    "bowl",
    "cup",
    "laptop",
    "keyboard",
    "mouse",
    "book",
    "chair",
    "couch",
    "cat",
    "car",
    "person",
    "dog",
    "bench",
)
WORDS = (*OBJECTS, *(f"a {name}" for name in OBJECTS), "and", ".")


def tokenizer_of(words: tuple[str, ...]) -> Any:
    """A tokenizer that knows the demo's special tokens, these words, and nothing else."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    from keepsight.demo.model import SPECIAL

    known = {word: i for i, word in enumerate((*SPECIAL, *words, "<unk>"))}
    model = Tokenizer(WordLevel(known, unk_token="<unk>"))
    model.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
    )


def standin() -> tuple[Any, Any]:
    """The model, in evaluation mode, and its processor; the same weights on every call."""
    from keepsight.demo.model import build_model, build_processor

    tokenizer = tokenizer_of(WORDS)
    torch.manual_seed(0)
    model = build_model(len(tokenizer))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    model.generation_config.suppress_tokens = [0, 1, 3, len(tokenizer) - 1]
    return model.eval(), build_processor(tokenizer)


def save(folder: Path) -> Path:
    """The stand-in as a checkpoint in ``folder``, under the names of the packaged one."""
    model, processor = standin()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
