"""Every error Keepsight raises on purpose: one line that says what is wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KeepsightError(Exception):
    """Base class of every error raised on purpose; the command line prints it as one line."""


class InputError(KeepsightError, ValueError):
    """What the caller gave cannot be used: a file, an image, a value."""


class UnsupportedModel(KeepsightError, TypeError):
    """The model does not offer what a method needs; the message names the missing part."""


class NoImageTokens(InputError):
    """A prompt holds no image, so there is nothing to contrast or to attend to."""


class InvalidParameter(InputError):
    """A method's parameter is NaN, out of its range or of the wrong type."""


class UnknownMethod(InputError):
    """No method has this name."""


class UnknownParameter(InputError):
    """The method has no parameter of this name."""


class OperatorOnly(InputError):
    """A request to a server names code, a file or a model, which only whoever operates the server may do."""


class NeedsCalibration(InputError):
    """A method needs constants of this very checkpoint, and none are known."""


class ConflictingMethods(InputError):
    """Methods that make no sense together."""


class ConcurrentUse(KeepsightError, RuntimeError):
    """Two threads want to edit the inside of one model at once."""


class NeedsBlock(InputError):
    """A method acts inside the model, and was asked for a logits processor."""


class CopiedInBlock(KeepsightError, RuntimeError):
    """A model is copied while a method is in place in it."""


class ProcessorReused(KeepsightError, RuntimeError):
    """A processor object met a second generation; it holds the state of one."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The sentence that ends an unknown-name error: the nearest names, else all of them.

    >>> did_you_mean("m3di", ["m3id", "vcd"])
    "did you mean 'm3id'?"
    """
    names = sorted(known)
    close = difflib.get_close_matches(word.lower(), names, n=2, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(repr(name) for name in close) + "?"
    return "known: " + ", ".join(names)


def first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
