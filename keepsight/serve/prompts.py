"""Turns whole conversations into model inputs, with each image in its place between the texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from keepsight.errors import first_line
from keepsight.serve.errors import PromptTooLong, RequestRefused
from keepsight.serve.limits import MAX_CHARACTERS_PER_TOKEN, Limits
from keepsight.source.prompts import NoChatTemplate

if TYPE_CHECKING:
    from PIL.Image import Image

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class ChatMessage:
    """One message of a conversation.

    Args:
        role: who has written the message: ``system``, ``user`` or ``assistant``.
        content: its texts and images in their order. Images are RGB.
    """

    role: Role
    content: tuple[str | Image, ...]

    @property
    def texts(self) -> list[str]:
        """The texts of the message, in their order."""
        return [part for part in self.content if isinstance(part, str)]

    @property
    def images(self) -> list[Image]:
        """The images of the message, in their order."""
        return [part for part in self.content if not isinstance(part, str)]


def context_length(model: Any) -> int | None:
    """The number of tokens, prompt and answer together, that the model has positions for.

    It is None if the model's configuration does not say.
    """
    length = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return int(length) if isinstance(length, int) else None


def max_prompt_tokens(model: Any, limits: Limits) -> int | None:
    """The largest number of tokens of a prompt: the operator's limit, or what leaves room for one token of an answer.

    It is the smaller one of the two, and None if neither is known.
    """
    context = context_length(model)
    bounds = [bound for bound in (limits.prompt_tokens, context and context - 1) if bound is not None]
    return min(bounds, default=None)


def prepare_chat(processor: Any, messages: Sequence[ChatMessage], *, max_tokens: int | None = None) -> Any:
    """The model inputs of one conversation, with a batch size of 1, written by the processor's chat template.

    Args:
        processor: the model's processor. No other thread may use its tokenizer at the same time.
        messages: the conversation, at least one message.
        max_tokens: the largest number of tokens, those of the images included. None, the default, is no bound.

    Returns:
        What the processor returns, as tensors on the CPU.

    Raises:
        NoChatTemplate: the processor has no chat template.
        PromptTooLong: the conversation has more than ``max_tokens`` tokens.
        RequestRefused: the template or the processor does not take this conversation, or a text holds the placeholder of an
            image.
    """
    texts = [text for message in messages for text in message.texts]
    _check_texts(processor, texts, max_tokens)
    prompt = _apply_template(processor, messages)
    images = [image for message in messages for image in message.images]
    options: dict[str, Any] = {"return_tensors": "pt"}
    bos = getattr(processor.tokenizer, "bos_token", None)
    if bos and prompt.startswith(bos):
        # The template has written the begin-of-sequence token; the tokenizer would add a second one
        options["add_special_tokens"] = False
    if images:
        options["images"] = [images]
    # Processors have no error class of their own for conversations that they cannot take
    try:
        inputs = processor(text=[prompt], **options)
    except (ValueError, TypeError, IndexError, StopIteration) as error:
        raise RequestRefused(
            f"{type(processor).__name__} does not take this conversation: {first_line(error)}",
            param="messages",
        ) from error
    # The length is only known now, because how many tokens an image takes depends on the processor
    length = int(inputs["input_ids"].shape[1])
    if max_tokens is not None and length > max_tokens:
        raise PromptTooLong(
            f"the conversation has {length} tokens and at most {max_tokens} are taken: shorten it",
            param="messages",
        )
    image_token = getattr(processor, "image_token_id", None)
    # Some templates drop the images of roles that they expect none from; the model would answer without having seen them
    if images and isinstance(image_token, int) and not bool((inputs["input_ids"] == image_token).any()):
        raise RequestRefused(
            "the model's chat template has no place for a picture where this conversation has one: put pictures into"
            " messages of the user",
            param="messages",
        )
    return inputs


def _check_texts(processor: Any, texts: Sequence[str], max_tokens: int | None) -> None:
    """Refuse texts that are too long to be tokenized, and texts that hold the placeholder of an image or a video."""
    letters = sum(map(len, texts))
    # Tokenizing takes time in proportion to the text, so a text that is far too long is refused before it is tokenized
    if max_tokens is not None and letters > MAX_CHARACTERS_PER_TOKEN * max_tokens:
        raise PromptTooLong(
            f"the conversation has {letters:,} characters, and at most {max_tokens} tokens are taken: shorten it",
            param="messages",
        )
    for name in ("image_token", "video_token"):
        placeholder = getattr(processor, name, None)
        # The processor would count a written placeholder as an image, and put the images in the wrong places
        if isinstance(placeholder, str) and any(placeholder in text for text in texts):
            raise RequestRefused(
                f"a text holds {placeholder!r}, by which the model knows its pictures: write it in another way",
                param="messages",
            )


def _apply_template(processor: Any, messages: Sequence[ChatMessage]) -> str:
    """The conversation as the text of a prompt, with a placeholder for each image and the beginning of an answer."""
    from jinja2 import TemplateError

    if not getattr(processor, "chat_template", None):
        raise NoChatTemplate(
            f"{type(processor).__name__} has no chat template: save one with the model's processor, or serve another model"
        )
    conversation = [
        {
            "role": message.role,
            "content": [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                for part in message.content
            ],
        }
        for message in messages
    ]
    # Templates refuse roles and orders of turns by raise_exception(), a TemplateError, or fail in one of their expressions
    try:
        text: str = processor.apply_chat_template(conversation, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError) as error:
        raise RequestRefused(
            f"the model's chat template does not take this conversation: {first_line(error)}",
            param="messages",
        ) from error
    return text
