"""What can be wrong with the files and numbers a scorer is given."""

from __future__ import annotations

from keepsight.errors import InputError, KeepsightError


class UnknownImage(InputError):
    """A caption's image has no ground truth, so none of its objects could be judged."""


class UnknownObject(InputError):
    """The ground truth names an object the vocabulary does not hold."""


class MixedTruth(InputError):
    """Ground truth that was made with one family or vocabulary is read for another."""


class MalformedFile(InputError):
    """A file, or one of its lines, is not in the documented form."""


class EmptyFile(InputError):
    """There is nothing to score."""


class DuplicateImage(InputError):
    """A file captions the same image twice."""


class DuplicateQuestion(InputError):
    """A question stands in a file twice, or was answered twice."""


class UnmatchedAnswers(InputError):
    """Answers do not belong to the questions they are to be scored against, or some are missing."""


class TooFewObjects(InputError):
    """The annotations do not hold what the questions asked for would need."""


class UnknownFamily(InputError):
    """CHAIR has no family of this name."""


class UnpairedReports(InputError):
    """Two reports cannot be compared image by image."""


class MissingData(KeepsightError, LookupError):
    """A family needs language data that is not installed."""
