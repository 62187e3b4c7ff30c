"""What a server refuses, each with the HTTP status and the fields of an OpenAI error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from keepsight.calibration.file import BadCalibration
from keepsight.errors import InputError, KeepsightError


class RequestRefused(InputError):
    """A request that cannot be answered as it stands.

    Args:
        param: the field of the request that is wrong.
        status, code: of the answer, where they are not those of the class.
        headers: of the answer.
    """

    status: int = 400
    code: str | None = None
    kind: ClassVar[str] = "invalid_request_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        status: int | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.param = param
        self.status = status or type(self).status
        self.code = code or type(self).code
        self.headers = dict(headers or {})


class BadPicture(RequestRefused):
    """An image part that is no picture, or not one that is taken."""

    code = "invalid_image"


class TooLarge(RequestRefused):
    """The request is larger than the server takes."""

    status = 413
    code = "request_too_large"


class PromptTooLong(RequestRefused):
    """The conversation does not fit the model, or the server's limit."""

    code = "context_length_exceeded"


class UnknownModelName(RequestRefused):
    """The server has no model of this name."""

    status = 404
    code = "model_not_found"


class NotAllowed(RequestRefused):
    """The key is missing or wrong."""

    status = 401
    code = "invalid_api_key"


class Busy(KeepsightError, RuntimeError):
    """The queue is full: try again in ``retry_after`` seconds."""

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ShuttingDown(KeepsightError, RuntimeError):
    """The server is about to end and takes nothing more."""


class GenerationFailed(KeepsightError, RuntimeError):
    """Something unexpected went wrong while an answer was written; the model is as it was before."""


class MissingExtra(KeepsightError, ImportError):
    """The packages of the extra ``serve`` are not installed."""


def code_of(error: Exception) -> str:
    """The class of a named error as a code: ``UnknownMethod`` as ``unknown_method``."""
    name = type(error).__name__
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


def tellable(error: Exception) -> bool:
    """Whether clients may read an error's own words: ours, but what is wrong with a file of the server names its place."""
    return isinstance(error, KeepsightError) and not isinstance(error, BadCalibration)
