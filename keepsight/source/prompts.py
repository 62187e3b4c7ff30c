"""From questions and pictures to the inputs of a model, in one call: see ``Source`` for what can be changed in between."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from keepsight.source.errors import BadPrompt, NoChatTemplate
from keepsight.source.source import Source

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["BadPrompt", "NoChatTemplate", "prepare", "prepare_conversation"]


def prepare(
    processor: Any, pictures: Iterable[Image], prompt: str | Sequence[str], *, raw: bool = False
) -> Any:
    """The model inputs of a question about each of some pictures, left-padded: ``Source.of(…).inputs()``.

    Args:
        prompt: one question for all pictures or one for each; the processor's chat template makes a prompt of it.
        raw: take ``prompt`` as it is, placeholder of the picture included.

    Raises:
        NoChatTemplate: neither a template nor ``raw``.
        NoImageTokens: a prompt has no place for the picture.
        BadPrompt: with the first line of what the template or the processor said.
    """
    return Source.of(processor, pictures, prompt, raw=raw).inputs()


def prepare_conversation(
    processor: Any, picture: Image, said: Sequence[tuple[str, str]], question: str
) -> Any:
    """The model inputs of a question that follows others about one picture, which stands before the first of them.

    Args:
        said: earlier questions with their answers; without any this is ``prepare``.

    Raises:
        NoChatTemplate: the processor has no template.
        NoImageTokens: the template leaves the picture out.
        BadPrompt: with the first line of what the template or the processor said.
    """
    return Source.conversation(processor, picture, said, question).inputs()
