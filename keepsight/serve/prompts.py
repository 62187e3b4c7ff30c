"""Model inputs of whole conversations, pictures wherever they stand in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from keepsight.serve.errors import PromptTooLong, RequestRefused
from keepsight.serve.limits import CHARACTERS, Limits
from keepsight.source.prompts import NoChatTemplate

if TYPE_CHECKING:
    from PIL.Image import Image

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """One message: who says it, and its texts and pictures in their order."""

    role: Role
    content: tuple[str | Image, ...]

    @property
    def texts(self) -> list[str]:
        return [part for part in self.content if isinstance(part, str)]

    @property
    def pictures(self) -> list[Image]:
        return [part for part in self.content if not isinstance(part, str)]


def context_length(model: Any) -> int | None:
    """How many tokens, prompt and answer together, the model has positions for; None where it does not say."""
    length = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return int(length) if isinstance(length, int) else None


def longest_prompt(model: Any, limits: Limits) -> int | None:
    """The most tokens that a prompt may have, so that one token of an answer has its place; None is no bound."""
    context = context_length(model)
    bounds = [bound for bound in (limits.prompt_tokens, context and context - 1) if bound is not None]
    return min(bounds, default=None)


def prepare_chat(processor: Any, turns: Sequence[Turn], *, longest: int | None = None) -> Any:
    """The inputs of one conversation, one row, as the processor's chat template writes it.

    Args:
        longest: the most tokens that they may have.

    Raises:
        NoChatTemplate: the processor has none.
        PromptTooLong: more tokens than ``longest``.
        RequestRefused: the template or the processor does not take this conversation; a text holds the placeholder of a
            picture.
    """
    texts = [text for turn in turns for text in turn.texts]
    _check_texts(processor, texts, longest)
    written = _templated(processor, turns)
    pictures = [picture for turn in turns for picture in turn.pictures]
    options: dict[str, Any] = {"return_tensors": "pt"}
    begin = getattr(processor.tokenizer, "bos_token", None)
    if begin and written.startswith(begin):
        options["add_special_tokens"] = False  # the template has written it already
    if pictures:
        options["images"] = [pictures]
    try:
        inputs = processor(text=[written], **options)
    except (ValueError, TypeError, IndexError, StopIteration) as error:
        raise RequestRefused(
            f"{type(processor).__name__} does not take this conversation: {first_line(error)}",
            param="messages",
        ) from error
    length = int(inputs["input_ids"].shape[1])
    if longest is not None and length > longest:
        raise PromptTooLong(
            f"the conversation has {length} tokens and at most {longest} are taken: shorten it",
            param="messages",
        )
    place = getattr(processor, "image_token_id", None)
    if pictures and isinstance(place, int) and not bool((inputs["input_ids"] == place).any()):
        raise RequestRefused(
            "the model's chat template has no place for a picture where this conversation has one: put pictures into"
            " messages of the user",
            param="messages",
        )
    return inputs


def _check_texts(processor: Any, texts: Sequence[str], longest: int | None) -> None:
    letters = sum(map(len, texts))
    if longest is not None and letters > CHARACTERS * longest:
        raise PromptTooLong(
            f"the conversation has {letters:,} characters, and at most {longest} tokens are taken: shorten it",
            param="messages",
        )
    for name in ("image_token", "video_token"):
        place = getattr(processor, name, None)
        if isinstance(place, str) and any(place in text for text in texts):
            raise RequestRefused(
                f"a text holds {place!r}, by which the model knows its pictures: write it in another way",
                param="messages",
            )


def _templated(processor: Any, turns: Sequence[Turn]) -> str:
    from jinja2 import TemplateError

    if not getattr(processor, "chat_template", None):
        raise NoChatTemplate(
            f"{type(processor).__name__} has no chat template: save one with the model's processor, or serve another model"
        )
    conversation = [
        {
            "role": turn.role,
            "content": [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                for part in turn.content
            ],
        }
        for turn in turns
    ]
    try:
        text: str = processor.apply_chat_template(conversation, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError) as error:
        raise RequestRefused(
            f"the model's chat template does not take this conversation: {first_line(error)}",
            param="messages",
        ) from error
    return text


def first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
