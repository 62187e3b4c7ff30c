"""The errors Keepsight raises on purpose. The message of each is one line that says what is wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KeepsightError(Exception):
    """The base class of every error that Keepsight raises on purpose; the command prints the message and exits with 2."""


class InputError(KeepsightError, ValueError):
    """Something that the caller gave, such as a file, an image or a value, cannot be used."""


class UnsupportedModel(KeepsightError, TypeError):
    """The model does not offer what a method needs; the message names the missing part."""


class NoImageTokens(InputError):
    """The prompt holds no image token, so that a method has no image to contrast with or to attend to."""


class InvalidParameter(InputError):
    """A parameter is NaN, is out of its range, or has the wrong type."""


class UnknownMethod(InputError):
    """No method is registered under this name; the message suggests the nearest names."""


class UnknownParameter(InputError):
    """The method has no parameter of this name; the message suggests the nearest names."""


class OperatorOnly(InputError):
    """A request to a server names code, a file or a model, which only the operator of the server may do."""


class NeedsCalibration(InputError):
    """A method needs constants that were measured on this checkpoint, and none are known for it."""


class ConflictingMethods(InputError):
    """Methods were asked for together that cannot be combined."""


class ConcurrentUse(KeepsightError, RuntimeError):
    """Two threads tried to edit the inside of one model at the same time."""


class NeedsBlock(InputError):
    """A method acts inside the model, and was asked for a logits processor."""


class CopiedInBlock(KeepsightError, RuntimeError):
    """A model is copied while a method is in place in it."""


class ProcessorReused(KeepsightError, RuntimeError):
    """A logits processor was given to a second generation, although it holds the state of the first one."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The words that end an error about an unknown name: the one or two nearest names, or all of them if none is near.

    >>> did_you_mean("m3di", ["m3id", "vcd"])
    "did you mean 'm3id'?"
    """
    names = sorted(known)
    close = difflib.get_close_matches(word.lower(), names, n=2, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(repr(name) for name in close) + "?"
    return "known: " + ", ".join(names)


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not blank, without space around it.

    Errors of other libraries may have messages of many lines, of which one fits into a message of ours. An error without
    a message gives the name of its class, so that the result is never empty.

    >>> first_line(ValueError("\\n  shapes differ\\n(3, 4) and (4, 4)"))
    'shapes differ'
    >>> first_line(KeyError())
    'KeyError'
    """
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
