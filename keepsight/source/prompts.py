"""From questions and pictures to the inputs of a model, by its own processor and chat template."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from keepsight.errors import InputError, NoImageTokens, first_line

if TYPE_CHECKING:
    from PIL.Image import Image


class NoChatTemplate(InputError):
    """The model's processor cannot wrap a question into a prompt."""


class BadPrompt(InputError):
    """The model's processor refuses a prompt."""


def prepare(
    processor: Any, pictures: Iterable[Image], prompt: str | Sequence[str], *, raw: bool = False
) -> Any:
    """The model inputs of a question about each of some pictures, left-padded.

    Args:
        prompt: one question for all pictures or one for each; the processor's chat template makes a prompt of it.
        raw: take ``prompt`` as it is, placeholder of the picture included.

    Raises:
        NoChatTemplate: neither a template nor ``raw``.
        NoImageTokens: a prompt has no place for the picture.
        BadPrompt: with the first line of what the processor said.
    """
    shown = [[picture] for picture in pictures]
    asked = [prompt] * len(shown) if isinstance(prompt, str) else list(prompt)
    texts = asked if raw else [_templated(processor, question) for question in asked]
    return _encoded(processor, texts, shown, raw=raw)


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
    from jinja2 import TemplateError

    def part(text: str) -> dict[str, str]:
        return {"type": "text", "text": text}

    first, *later = [asked for asked, _ in said] + [question]
    messages: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "image"}, part(first)]}]
    for (_, answered), asked in zip(said, later, strict=True):
        messages += [
            {"role": "assistant", "content": [part(answered)]},
            {"role": "user", "content": [part(asked)]},
        ]
    try:
        text = _from_template(processor, messages)
    except TemplateError as error:
        raise BadPrompt(f"the chat template refuses the conversation: {first_line(error)}") from error
    return _encoded(processor, [text], [[picture]], raw=False)


def _encoded(processor: Any, texts: Sequence[str], shown: Sequence[Sequence[Image]], *, raw: bool) -> Any:
    """Whole prompts and the pictures of each as model inputs; see ``prepare``."""
    options: dict[str, Any] = {"return_tensors": "pt"}
    if len(shown) > 1:
        options |= {"padding": True, "padding_side": "left"}
    begin = getattr(processor.tokenizer, "bos_token", None)
    if not raw and begin and all(text.startswith(begin) for text in texts):
        options["add_special_tokens"] = False  # the template has written it already
    written = " or ".join(map(repr, dict.fromkeys([*texts[:1], *texts[-1:]])))
    try:
        inputs = processor(text=list(texts), images=shown, **options)
    except (ValueError, StopIteration) as error:  # the latter at transformers 5.20
        raise BadPrompt(
            f"{type(processor).__name__} refuses the prompt {written}: {first_line(error)}"
        ) from error
    place = getattr(processor, "image_token_id", None)
    if isinstance(place, int) and not (found := (inputs["input_ids"] == place).any(-1)).all():
        lacking = texts[found.tolist().index(False)]
        raise NoImageTokens(
            f"the prompt {lacking!r} has no place for the picture: write {processor.image_token} into it"
        )
    return inputs


def _templated(processor: Any, question: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return _from_template(processor, [{"role": "user", "content": content}])


def _from_template(processor: Any, messages: Sequence[dict[str, Any]]) -> str:
    if not getattr(processor, "chat_template", None):
        raise NoChatTemplate(
            f"{type(processor).__name__} has no chat template: pass the whole prompt, placeholder of the picture"
            " included, as a raw prompt"
        )
    text: str = processor.apply_chat_template(messages, add_generation_prompt=True)
    return text
