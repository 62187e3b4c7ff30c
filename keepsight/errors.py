"""The errors that Keepsight raises on purpose. Each message is one line that says what is wrong and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KeepsightError(Exception):
    """The base class of every error that Keepsight raises on purpose; the command prints the message and exits with 2."""


class InputError(KeepsightError, ValueError):
    """Something that the caller gave, such as a file, an image or a value, cannot be used."""


class UnsupportedModel(KeepsightError, TypeError):
    """The model does not offer what a method needs; the message names the missing part."""


class UnsupportedEngine(KeepsightError, RuntimeError):
    """The program that runs the model, such as vLLM, has a version or a setting under which methods could go wrong."""


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
    """The caller asked for several methods that cannot be combined."""


class ConcurrentUse(KeepsightError, RuntimeError):
    """Two threads tried to edit the inside of one model at the same time."""


class NeedsBlock(InputError):
    """A method that acts inside the model was asked for a logits processor, which it cannot give."""


class CopiedInBlock(KeepsightError, RuntimeError):
    """A model was copied while a method was in place in it."""


class ProcessorReused(KeepsightError, RuntimeError):
    """A logits processor was given to a second generation, although it holds the state of the first one."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the words that end an error about an unknown name: the one or two nearest names, or all if none is near.

    Args:
        word: the name that is not known; letter case does not matter.
        known: all names that would have been right, in any order.

    >>> did_you_mean("m3di", ["m3id", "vcd"])
    "did you mean 'm3id'?"
    """
    names = sorted(known)
    # Names are lower case as a rule. Without lowering, "M3DI" would have no letter in common with "m3id" but the "3".
    close = difflib.get_close_matches(word.lower(), names, n=2, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(repr(name) for name in close) + "?"
    return "known: " + ", ".join(names)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that is not blank, without white space around it.

    Messages of errors from other libraries may have many lines, of which only one fits into a message of Keepsight. For an
    error without a message the name of its class is returned, so that the result is never empty.

    >>> first_line(ValueError("\\n  shapes differ\\n(3, 4) and (4, 4)"))
    'shapes differ'
    >>> first_line(KeyError())
    'KeyError'
    """
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
