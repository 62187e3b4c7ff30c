"""The options that several commands share. Each is defined once, so that it reads and works alike everywhere.

An option here has no default: a command gives it in its own signature.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

DECODING, OWN = "Decoding", "Your own pictures"
"""The headings under which ``--help`` of the longer commands groups options."""

# What is loaded

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder with a checkpoint, a Hugging Face id, or [bold]demo[/bold] for the packaged model.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        help="Where the model runs: cpu, cuda, cuda:1, or auto, which spreads it over all GPUs.",
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="Precision of the weights: float32, bfloat16, float16, or auto, which is the checkpoint's own (float32 for"
        " the demo model and for random weights)."
    ),
]

# Commands


def command_group() -> typer.Typer:
    """A command with commands of its own; without one of them its callback prints the help."""
    return typer.Typer(
        invoke_without_command=True,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )


# Methods

_METHOD = (
    "A method, such as [bold]m3id:decay=0.05[/bold], or several that act together, joined with +, such as"
    " [bold]m3id+vhr[/bold]. [bold]keepsight methods[/bold] lists them."
)


def method_option(default: str) -> Any:
    """``--method`` of the commands that compare alternatives.

    Args:
        default: what happens without the option, in words.
    """
    return typer.Option(
        "--method",
        metavar="SPEC",
        help=_METHOD + " Repeat the option to compare alternatives.",
        show_default=default,
    )


def one_method_option(default: str) -> Any:
    """``--method`` of the commands that take it once.

    The option is a list all the same, so that a command can refuse a second one by name, see ``only_one``.

    Args:
        default: what happens without the option, in words.
    """
    return typer.Option(
        "--method",
        metavar="SPEC",
        help=_METHOD + " This command takes the option once.",
        show_default=default,
    )


RecordedMethod = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        metavar="SPEC",
        help='Score only what was recorded under this method, as the "method" in the file says it.',
        show_default="the file's only method",
    ),
]
CalibrationFile = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="FILE",
        help="What [bold]keepsight calibrate[/bold] found in this model, for the methods that need it (var).",
        show_default=False,
    ),
]

# What is asked, and how it is answered

Prompt = Annotated[str, typer.Option(help="The question. The model's chat template makes a prompt of it.")]
BenchPrompt = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        help="What to ask. {question} stands for the benchmark's own question:"
        ' "{question} Answer yes or no."',
        show_default="{question}",
        rich_help_panel=DECODING,
    ),
]
RawPrompt = Annotated[
    bool,
    typer.Option(
        "--raw-prompt",
        help="Take --prompt as it is, without a chat template. It holds the picture's placeholder.",
    ),
]
MaxNewTokens = Annotated[int, typer.Option(help="The longest answer, in tokens.")]
BenchMaxNewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        help="The longest answer, in tokens.",
        show_default="512 for chair, 32 for pope and beaf",
        rich_help_panel=DECODING,
    ),
]
Sample = Annotated[
    bool, typer.Option("--sample", help="Draw tokens at random instead of taking the most probable ones.")
]
Temperature = Annotated[
    float | None, typer.Option(help="Temperature of --sample, above 0.", show_default="1")
]
TopP = Annotated[
    float | None,
    typer.Option(
        help="With --sample, draw from the most probable tokens that make up this share.", show_default="1"
    ),
]
SampleSeed = Annotated[
    int,
    typer.Option(
        "--seed", help="Seed of sampling. Every answer starts from it, so that it does not depend on others."
    ),
]
BenchSeed = Annotated[
    int,
    typer.Option(
        "--seed", help="Seed of sampling. Every question has a stream of its own.", rich_help_panel=DECODING
    ),
]
BenchBatch = Annotated[
    int, typer.Option("--batch", help="How many questions are answered together.", rich_help_panel=DECODING)
]

# Pictures

_SCENE = (
    "a drawn scene of the demo world such as [bold]test-shifted:3[/bold], of which it is known what is in it"
)
Picture = Annotated[str, typer.Argument(metavar="IMAGE", help=f"A picture, or {_SCENE}.")]
Pictures = Annotated[
    list[str], typer.Argument(metavar="IMAGE…", help=f"Pictures. Each is a file, or {_SCENE}.")
]
ImageFolder = Annotated[
    Path | None,
    typer.Option(
        "--images",
        metavar="DIR",
        help="Folder of your pictures, instead of those that come with the demo world.",
        show_default=False,
    ),
]
Limit = Annotated[int, typer.Option("--limit", metavar="N", min=1, help="Take only the first N pictures.")]


def limit_option(default: str) -> Any:
    """``--limit`` of the commands whose default depends on other options.

    Args:
        default: how many pictures are taken without the option, in words.
    """
    return typer.Option(
        "--limit",
        metavar="N",
        help="Take only the first N pictures, with all questions about them.",
        show_default=default,
    )


def split_option(default: str, splits: str = "test, test-shifted, val or val-shifted") -> Any:
    """``--split`` of the demo world.

    Args:
        default: the split that is taken without the option.
        splits: the splits that the command takes, in words.
    """
    return typer.Option("--split", help=f"Split of the demo world: {splits}.", show_default=default)


# What is in the pictures

Annotations = Annotated[
    list[Path] | None,
    typer.Option(
        "--annotations",
        metavar="FILE",
        help="COCO instances, such as instances_val2014.json. Repeat the option for several files.",
    ),
]
References = Annotated[
    list[Path] | None,
    typer.Option(
        "--references",
        metavar="FILE",
        help="COCO captions, such as captions_val2014.json: what people wrote of counts as in the picture, too. Repeat"
        " the option for several files. The published CHAIR and POPE use both --annotations and --references.",
    ),
]
GroundTruth = Annotated[
    list[Path] | None,
    typer.Option(
        "--ground-truth",
        metavar="FILE",
        help='Instead of COCO files: JSON lines of {"image_id": 42, "objects": ["cat", "sofa"]}, what [bold]keepsight'
        " truth[/bold] wrote, or a run's items.jsonl.",
    ),
]
_FAMILY = (
    "Which CHAIR finds objects in captions: [bold]pattern[/bold], the original of 2018, or [bold]wordnet[/bold],"
    " OPERA's and most papers' since 2023, which needs NLTK data. Scores of the two must not be compared."
)
Family = Annotated[str, typer.Option("--family", help=_FAMILY)]
RunFamily = Annotated[
    str | None, typer.Option("--family", help=_FAMILY, show_default="that of the run, else pattern")
]
Synonyms = Annotated[
    Path | None,
    typer.Option(
        "--synonyms",
        metavar="FILE",
        help="The words of another data set: one object on each line, its name first, then further words for it,"
        " separated by commas.",
        show_default="COCO's 80 objects",
    ),
]

# Scoring

_PARSER = (
    "The rule that reads yes or no out of an answer. [bold]strict[/bold] counts what it cannot read as wrong"
)
Parser = Annotated[
    str,
    typer.Option(
        "--parser",
        help=_PARSER
        + "; official, opera, vcd, lmms_eval, vlmevalkit, mme and beaf are those of published code.",
    ),
]
Partial = Annotated[
    bool,
    typer.Option("--partial", help="Score what was answered, although some questions have no answer."),
]
AnswerKey = Annotated[
    str | None,
    typer.Option(
        "--answer-key",
        metavar="KEY",
        help="The key under which the file holds what the model said, where its form is not known.",
        show_default="what the form of the file says",
    ),
]
ImageKey = Annotated[
    str | None,
    typer.Option(
        "--image-key",
        metavar="KEY",
        help="The key under which the file names the picture, where its form is not known.",
        show_default="what the form of the file says",
    ),
]
Resamples = Annotated[
    int,
    typer.Option(
        "--resamples",
        min=0,
        help="Bootstrap resamples of the pictures for the intervals; 0 for no intervals.",
    ),
]
BootstrapSeed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the bootstrap.")]

# Output

JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Write everything as JSON to this file. With - it goes to standard output, and nothing else does.",
        show_default=False,
    ),
]
MarkdownFile = Annotated[
    Path | None,
    typer.Option(
        "--markdown",
        metavar="FILE",
        help="Write the tables as Markdown to this file. With - they go to standard output, and nothing else does.",
        show_default=False,
    ),
]
HtmlFile = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="FILE",
        help="Write a page with figures, tables and captions to this file. The page needs no other file.",
        show_default=False,
    ),
]
