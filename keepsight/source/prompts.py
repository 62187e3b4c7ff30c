"""Makes the inputs of a model from questions and pictures in one call; ``Source`` also changes them in between."""

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
    """Returns the model inputs of a question about each of some pictures, left-padded: ``Source.of(…).inputs()``.

    Args:
        processor: the model's processor, with a ``tokenizer``.
        pictures: the pictures, one for each row.
        prompt: one question for all pictures or one for each; the processor's chat template makes a prompt of it.
        raw: take ``prompt`` as it is, placeholder of the picture included.

    Raises:
        NoChatTemplate: the processor has no template, and the prompt is not raw.
        NoImageTokens: a prompt has no place for the picture.
        BadPrompt: the template or the processor refuses the prompt; the message holds the first line of its reason.
    """
    return Source.of(processor, pictures, prompt, raw=raw).inputs()


def prepare_conversation(
    processor: Any, picture: Image, said: Sequence[tuple[str, str]], question: str
) -> Any:
    """Returns the model inputs of a question that follows others about one picture, which stands before the first of them.

    Args:
        processor: the model's processor, with a ``tokenizer``.
        picture: the picture that the conversation is about.
        said: earlier questions with their answers, the first one first; without any this is ``prepare``.
        question: the question to answer now.

    Raises:
        NoChatTemplate: the processor has no template.
        NoImageTokens: the template leaves the picture out.
        BadPrompt: the template or the processor refuses the conversation; the message holds the first line of its reason.
    """
    return Source.conversation(processor, picture, said, question).inputs()
