"""Options that several commands share, so that they read alike everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_MODEL = "A folder, a Hugging Face id, or [bold]demo[/bold] for the packaged model."

Model = Annotated[str, typer.Option("--model", "-m", help=_MODEL)]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL)]
Prompt = Annotated[str, typer.Option(help="The question; the model's chat template makes a prompt of it.")]
RawPrompt = Annotated[
    bool, typer.Option("--raw-prompt", help="Take --prompt as it is, the picture's placeholder included.")
]
MaxNewTokens = Annotated[int, typer.Option(help="Longest caption, in tokens.")]
DeviceMap = Annotated[
    str | None, typer.Option(help="Where the model goes: auto, cuda, cuda:1, …", show_default="the CPU")
]
Dtype = Annotated[
    str, typer.Option(help="float32, bfloat16, float16, or auto: the checkpoint's own (demo: float32).")
]
Synonyms = Annotated[
    Path | None,
    typer.Option(
        "--synonyms",
        metavar="FILE",
        help="The words of another data set: one object a line, its name first, then further words for it, parted by "
        "commas.",
        show_default="COCO's 80 objects",
    ),
]
