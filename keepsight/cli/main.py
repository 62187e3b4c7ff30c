"""The ``keepsight`` command: registers the commands and turns errors into one line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from inspect import cleandoc
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import keepsight
from keepsight.cli.amber import app as amber
from keepsight.cli.attention import attention
from keepsight.cli.beaf import app as beaf
from keepsight.cli.bench import bench
from keepsight.cli.calibrate import calibrate
from keepsight.cli.caption import caption
from keepsight.cli.chair import chair
from keepsight.cli.chat import chat
from keepsight.cli.compare import compare
from keepsight.cli.demo import demo
from keepsight.cli.dominance import dominance
from keepsight.cli.ground import ground
from keepsight.cli.inspect import inspect
from keepsight.cli.methods import methods
from keepsight.cli.mme import app as mme
from keepsight.cli.pope import app as pope
from keepsight.cli.run import run as run_bench
from keepsight.cli.serve import serve
from keepsight.cli.truth import truth
from keepsight.cli.tune import tune
from keepsight.cli.ui import ui
from keepsight.cli.verify import verify
from keepsight.errors import KeepsightError

OK, UNEXPECTED, REFUSED, INTERRUPTED = 0, 1, 2, 130

EXIT_CODES = (
    f"Exit codes: {OK} done; {UNEXPECTED} an unexpected error, please report it; {REFUSED} bad usage or input: the last"
    f" line of stderr says what to do; {INTERRUPTED} interrupted."
)


class OneLineErrors(TyperGroup):
    """A group of commands whose errors are one line on stderr, usage errors included."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command, and leave the process with its exit code."""
        try:
            # In its standalone mode, Click prints errors in several lines and leaves the process by itself, so it is
            # turned off.
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except (KeyboardInterrupt, typer.Abort):
            code = INTERRUPTED
        except KeepsightError as error:
            sys.exit(_refuse(str(error), REFUSED))
        except Exception as error:
            # Newer versions of Typer carry their own copy of Click, so the base class of usage errors has no fixed address.
            # These errors are known by a method that only they have.
            if not hasattr(error, "format_message"):
                raise
            context = getattr(error, "ctx", None)
            where = f" (see {context.command_path} --help)" if context else ""
            sys.exit(_refuse(error.format_message().rstrip(".") + where, REFUSED))
        if code == INTERRUPTED:
            _refuse("interrupted", code)
        # Outside its standalone mode, Click returns the exit code of a command that raised Exit, and else what the
        # command returned.
        sys.exit(code if isinstance(code, int) else OK)


def _refuse(message: str, code: int) -> int:
    """Print a message in one line on stderr, and return the exit code."""
    print("error:", " ".join(message.split()), file=sys.stderr)
    return code


app = typer.Typer(
    name="keepsight",
    cls=OneLineErrors,
    help="Fewer invented objects from vision-language models, without training. Start with [bold]keepsight demo[/bold].",
    epilog=EXIT_CODES,
    invoke_without_command=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    """Print the version and leave, if the option was given."""
    if wanted:
        print(f"keepsight {keepsight.__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


PANELS: dict[str, dict[str, Any]] = {
    "Look at pictures": {
        "demo": demo, "caption": caption, "ground": ground, "attention": attention, "dominance": dominance,
    },
    "Talk": {"chat": chat, "ui": ui, "serve": serve},
    "Models and methods": {"methods": methods, "inspect": inspect, "verify": verify, "calibrate": calibrate, "bench": bench},
    "Score files": {"chair": chair, "truth": truth, "pope": pope, "mme": mme, "beaf": beaf, "amber": amber},
    "Compare methods": {"run": run_bench, "compare": compare, "tune": tune},
}  # fmt: skip
"""The commands as ``--help`` groups them."""
SETTINGS: dict[str, dict[str, Any]] = {"serve": {"allow_extra_args": True}}
"""Commands that hand arguments on: what stands after ``--`` is for the program that they start."""


def help_text(docstring: str | None) -> str:
    """A command's docstring as ``--help`` shows it: prose in lines as wide as the terminal, then the examples.

    Typer keeps the line breaks of all paragraphs but the first, and takes the indentation from the second. Prose is
    therefore joined into one line for each paragraph, and the indented examples come last.
    """
    paragraphs = cleandoc(docstring or "").split("\n\n")
    examples = [text for text in paragraphs if text.startswith(" ")]
    prose = [" ".join(text.split()) for text in paragraphs if not text.startswith(" ")]
    return "\n\n".join([*prose, *examples])


for panel, commands in PANELS.items():
    for name, command in commands.items():
        if isinstance(command, typer.Typer):
            for inner in command.registered_commands:
                inner.help = help_text(inner.callback and inner.callback.__doc__)
            app.add_typer(command, name=name, rich_help_panel=panel)
        else:
            app.command(
                name,
                help=help_text(command.__doc__),
                rich_help_panel=panel,
                context_settings=SETTINGS.get(name),
            )(command)


def run() -> None:
    """Run the command line; this is the entry point of the console script."""
    app()
