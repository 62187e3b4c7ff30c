"""The errors that the scorers raise about the files and values they are given."""

from __future__ import annotations

from keepsight.errors import InputError, KeepsightError


class UnknownImage(InputError):
    """An image has no ground truth, so that none of the objects named in its caption can be judged."""


class UnknownObject(InputError):
    """The ground truth names an object that the vocabulary does not hold."""


class MixedTruth(InputError):
    """The ground truth was made with another CHAIR family or vocabulary than the one it is read for."""


class MalformedFile(InputError):
    """A file, or one of its lines, does not have the documented form; the message names the file and the line."""


class AmbiguousKeys(MalformedFile):
    """Several keys of a file could hold the model's words, and the file has no known form; the message names the keys."""


class EmptyFile(InputError):
    """A file or a list holds nothing that could be scored."""


class DuplicateImage(InputError):
    """A file holds two captions of the same image."""


class DuplicateQuestion(InputError):
    """A question occurs twice in a file, or has two answers."""


class UnmatchedAnswers(InputError):
    """Answers belong to other questions than those they are scored against, or a question has no answer."""


class TooFewObjects(InputError):
    """The annotations hold too few pictures or objects to build the questions that were asked for."""


class UnknownFamily(InputError):
    """CHAIR has no family of this name."""


class UnpairedReports(InputError):
    """Two reports cannot be compared image by image: their images, questions, family, vocabulary or parser differ."""


class MissingData(KeepsightError, LookupError):
    """Language data, or a package that reads a form of file, is not installed; the message says how to install it."""
