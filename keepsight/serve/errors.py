"""The named errors of a server. A refused request carries the HTTP status and the fields of an OpenAI error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from keepsight.calibration.file import BadCalibration
from keepsight.errors import InputError, KeepsightError


class RequestRefused(InputError):
    """A request that cannot be answered as it stands.

    Args:
        message: one line that says what is wrong and what to do.
        param: the field of the request that is wrong, or None if no single field is.
        status, code: the HTTP status and the error code of the response; by default those of the class.
        headers: further headers of the response.
    """

    # The defaults, which subclasses replace. The values of an error itself are set on the instance
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


class InvalidImage(RequestRefused):
    """An image of the request cannot be decoded, or is not of a kind that the server takes."""

    code = "invalid_image"


class TooLarge(RequestRefused):
    """The body of the request has more bytes than the server takes."""

    status = 413
    code = "request_too_large"


class PromptTooLong(RequestRefused):
    """The conversation has more tokens than the model or the server's limit allows."""

    code = "context_length_exceeded"


class UnknownModelName(RequestRefused):
    """The server has no model of this name."""

    status = 404
    code = "model_not_found"


class Unauthorized(RequestRefused):
    """The API key is missing or wrong."""

    status = 401
    code = "invalid_api_key"


class Busy(KeepsightError, RuntimeError):
    """The server has too much to do at the moment.

    Args:
        message: one line that says what there is too much of.
        retry_after: after how many seconds the client may try again.
    """

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ShuttingDown(KeepsightError, RuntimeError):
    """The server is shutting down and takes no more requests."""


class GenerationFailed(KeepsightError, RuntimeError):
    """Something unexpected went wrong while an answer was generated. The model is as it was before."""


class MissingExtra(KeepsightError, ImportError):
    """The packages of the extra ``serve`` are not installed."""


def code_of(error: Exception) -> str:
    """The class of a named error as an error code: ``unknown_method`` for ``UnknownMethod``."""
    name = type(error).__name__
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


def is_client_safe(error: Exception) -> bool:
    """Whether clients may read an error's message.

    They may read the messages of our own errors, with one exception: ``BadCalibration`` names a file of the server. The
    messages of all other errors are written by libraries, and may say anything.
    """
    return isinstance(error, KeepsightError) and not isinstance(error, BadCalibration)
