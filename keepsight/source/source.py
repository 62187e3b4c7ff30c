"""``Source`` keeps what model inputs were made of, so that they can be made again with one thing changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from keepsight.errors import InputError, NoImageTokens, first_line
from keepsight.source.errors import BadPrompt, CannotRemoveImage, NoChatTemplate
from keepsight.target import TOKEN_KEYS

if TYPE_CHECKING:
    from PIL.Image import Image

Message = Mapping[str, Any]
"""One message of a chat: ``{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "…"}]}``."""

_PROBE = "QZX"
"""A question that shares no letter with what a template writes around a picture."""


@dataclass(frozen=True, eq=False)
class Source:
    """The processor, prompts and pictures behind a batch of model inputs.

    ``Source.of`` makes one from questions and pictures; ``inputs`` turns it into what ``generate`` takes. Every ``with_…``
    and ``without_…`` method gives a changed copy, so that a contrastive method can show its amateur another picture or
    another text::

        source = Source.of(processor, pictures, "Describe this image.")
        inputs = source.inputs().to(model.device, dtype=model.dtype)
        blurred = source.with_images(lambda picture: picture.filter(GaussianBlur(8))).inputs()
        text_only = source.without_images().inputs()

    Args:
        processor: the model's processor, with a ``tokenizer``.
        prompts: for each row its chat messages, or one string, which is a raw prompt: the whole text, placeholders of the
            pictures included. All rows are of one kind.
        pictures: for each row its pictures, in the order in which the prompt names them.

    Raises:
        InputError: there are no rows, not as many lists of pictures as prompts, or raw prompts among messages.
    """

    processor: Any
    prompts: tuple[str | tuple[Message, ...], ...]
    pictures: tuple[tuple[Image, ...], ...]

    def __post_init__(self) -> None:
        if not self.prompts:
            raise InputError("there is no prompt: give at least one picture and one question")
        if len(self.prompts) != len(self.pictures):
            raise InputError(
                f"{len(self.prompts)} prompts need as many lists of pictures, not {len(self.pictures)}"
            )
        if len({isinstance(prompt, str) for prompt in self.prompts}) > 1:
            raise InputError("raw prompts and chat messages cannot be mixed in one batch: give one kind")

    @classmethod
    def of(
        cls, processor: Any, pictures: Iterable[Image], prompt: str | Sequence[str], *, raw: bool = False
    ) -> Source:
        """Make a source of one question about each of some pictures; the picture stands before the question.

        Args:
            processor: the model's processor, with a ``tokenizer``.
            pictures: the pictures, one for each row.
            prompt: one question for all pictures, or one for each.
            raw: take ``prompt`` as the whole text of the prompt, placeholder of the picture included.

        Raises:
            InputError: there is no picture, or not one question for each.
        """
        shown = tuple((picture,) for picture in pictures)
        asked = (prompt,) * len(shown) if isinstance(prompt, str) else tuple(prompt)
        if raw:
            return cls(processor, asked, shown)
        return cls(processor, tuple((_user(question, image=True),) for question in asked), shown)

    @classmethod
    def conversation(
        cls, processor: Any, picture: Image, said: Sequence[tuple[str, str]], question: str
    ) -> Source:
        """Make a source of a question that follows others about one picture, which stands before the first of them.

        Args:
            processor: the model's processor, with a ``tokenizer``.
            picture: the picture that the conversation is about.
            said: earlier questions with their answers, the first one first.
            question: the question to answer now.
        """
        first, *later = [asked for asked, _ in said] + [question]
        messages = [_user(first, image=True)]
        for (_, answered), asked in zip(said, later, strict=True):
            messages += [{"role": "assistant", "content": [_text(answered)]}, _user(asked)]
        return cls(processor, (tuple(messages),), ((picture,),))

    @property
    def raw(self) -> bool:
        """Whether the prompts are whole texts, to which no chat template is applied."""
        # All rows are of one kind, as ``__post_init__`` has checked.
        return isinstance(self.prompts[0], str)

    @property
    def questions(self) -> tuple[str, ...]:
        """For each row the text of its last user message; of a raw prompt the whole text.

        Raises:
            InputError: a row has no message of the user.
        """
        return tuple(
            prompt
            if isinstance(prompt, str)
            else "".join(
                part["text"] for part in _parts(prompt[_last_user(prompt)]) if part["type"] == "text"
            )
            for prompt in self.prompts
        )

    def texts(self) -> tuple[str, ...]:
        """Returns the whole prompts, as the chat template writes them, with one placeholder for each picture.

        Raises:
            NoChatTemplate: the processor has no template, and the prompts are not raw.
            BadPrompt: the template refuses the messages.
        """
        return tuple(
            prompt if isinstance(prompt, str) else render(self.processor, prompt) for prompt in self.prompts
        )

    def inputs(self) -> Any:
        """Returns the model inputs, a ``BatchFeature`` on the CPU; several rows are padded on the left.

        The prompts of a source without pictures go through the tokenizer alone, and the result holds nothing that belongs to
        a picture.

        Raises:
            NoChatTemplate: see ``texts``.
            BadPrompt: see ``texts``, or the processor refuses a prompt; the message holds the first line of its reason.
            NoImageTokens: a row has a picture, and its prompt has no place for it.
            InputError: a prompt without pictures is empty.
        """
        texts = self.texts()
        options: dict[str, Any] = {"return_tensors": "pt"}
        if len(texts) > 1:
            # Generation goes on at the right end of every row, so the padding has to stand on the left.
            options |= {"padding": True, "padding_side": "left"}
        begin = getattr(self.processor.tokenizer, "bos_token", None)
        # Some templates write the begin mark themselves, and the tokenizer would add a second one.
        if not self.raw and begin and all(text.startswith(begin) for text in texts):
            options["add_special_tokens"] = False
        if not any(self.pictures):
            return self._text_inputs(texts, options)
        try:
            inputs = self.processor(text=list(texts), images=[list(row) for row in self.pictures], **options)
        except (ValueError, StopIteration) as error:
            # Where pictures and placeholders differ in number, some processors of transformers 5.20 raise StopIteration.
            raise self._refused(texts, error) from error
        self._check_placeholders(texts, inputs["input_ids"])
        return inputs

    def without_images(self) -> Source:
        """Returns the same prompts, as they would have been written without their pictures.

        From messages the picture is left out, and the chat template writes the rest: it may write something beside a picture
        (LLaVA-1.5's writes a newline), which is then missing as well. From a raw prompt the span is removed that the chat
        template writes for a picture. Where there is no template, or the prompt holds no such span, the placeholder alone is
        removed, if that changes no other token.

        Raises:
            CannotRemoveImage: a raw prompt leaves it open which of its tokens belong to the picture.
            BadPrompt, NoImageTokens: as ``inputs``, which raw prompts without a template are compared with.
        """
        none: tuple[tuple[Image, ...], ...] = tuple(() for _ in self.pictures)
        if self.raw:
            return replace(self, prompts=self._raw_without_images(), pictures=none)
        return replace(
            self,
            prompts=tuple(
                tuple(
                    {**message, "content": [part for part in _parts(message) if part["type"] != "image"]}
                    for message in prompt
                )
                for prompt in self.prompts
                if not isinstance(prompt, str)
            ),
            pictures=none,
        )

    def with_images(self, transform: Callable[[Image], Image]) -> Source:
        """Returns the same prompts about other pictures: each is replaced by ``transform(picture)``, before any processing.

        Raises:
            InputError: ``transform`` returns something other than a PIL image.
        """
        from PIL.Image import Image

        changed = tuple(tuple(transform(picture) for picture in row) for row in self.pictures)
        for picture in (picture for row in changed for picture in row):
            if not isinstance(picture, Image):
                raise InputError(
                    f"the transform of pictures gave a {type(picture).__name__}: let it return a PIL image"
                )
        return replace(self, pictures=changed)

    def with_questions(self, questions: Sequence[str]) -> Source:
        """Returns the same pictures with other questions, one for each row.

        The new questions replace those in ``questions``: the text of the last message of the user, or a whole raw prompt.
        To put a text before the question, pass
        ``[f"{given}\\n{asked}" for given, asked in zip(texts, source.questions)]``.

        Raises:
            InputError: there is not one question for each row, or a row has no message of the user.
        """
        if len(questions) != len(self.prompts):
            raise InputError(f"{len(self.prompts)} rows need as many questions, not {len(questions)}")
        return replace(
            self,
            prompts=tuple(
                question if isinstance(prompt, str) else _with_question(prompt, question)
                for prompt, question in zip(self.prompts, questions, strict=True)
            ),
        )

    def with_system(self, text: str) -> Source:
        """Returns the same conversations under the system message ``text``, in place of theirs if they have one.

        Not every chat template takes a system message: ``inputs`` raises ``BadPrompt`` if it refuses this one.

        Raises:
            InputError: the prompts are raw, so the place of a system message is not known.
        """
        if self.raw:
            raise InputError(
                "a raw prompt has no place for a system message: write it into the prompt, or use the chat template"
            )
        system: Message = {"role": "system", "content": [_text(text)]}
        return replace(
            self,
            prompts=tuple(
                (system, *(message for message in prompt if message["role"] != "system"))
                for prompt in self.prompts
                if not isinstance(prompt, str)
            ),
        )

    def _text_inputs(self, texts: Sequence[str], options: dict[str, Any]) -> Any:
        """Returns the model inputs of prompts without pictures."""
        from transformers import BatchFeature

        try:
            # The tokenizer is called itself, since some processors insist on a picture.
            found = dict(self.processor.tokenizer(list(texts), **options))
        except ValueError as error:
            raise self._refused(texts, error) from error
        ids = found["input_ids"]
        if ids.shape[1] == 0 or not bool(found["attention_mask"].any(-1).all()):
            raise InputError("a prompt of pictures alone has no text without them: add a question")
        # The processor adds entries for the kinds of tokens (text, picture) that the tokenizer alone does not; a text has
        # only tokens of kind 0.
        for name in TOKEN_KEYS.intersection(getattr(self.processor, "model_input_names", ())) - found.keys():
            found[name] = torch.zeros_like(ids)
        return BatchFeature(found)

    def _refused(self, texts: Sequence[str], error: Exception) -> BadPrompt:
        """Returns the error for prompts that the processor refuses; the first and the last of them stand in its message."""
        written = " or ".join(map(repr, dict.fromkeys([*texts[:1], *texts[-1:]])))
        return BadPrompt(f"{type(self.processor).__name__} refuses the prompt {written}: {first_line(error)}")

    def _check_placeholders(self, texts: Sequence[str], ids: Any) -> None:
        """Raises ``NoImageTokens`` where a prompt has no place for its picture: some processors leave the picture out
        without an error."""
        place = getattr(self.processor, "image_token_id", None)
        # A processor that does not name its placeholder cannot be checked.
        if not isinstance(place, int):
            return
        for text, shown, found in zip(texts, self.pictures, (ids == place).any(-1).tolist(), strict=True):
            if shown and not found:
                raise NoImageTokens(
                    f"the prompt {text!r} has no place for the picture: write {self.processor.image_token} into it"
                )

    def _raw_without_images(self) -> tuple[str, ...]:
        """Returns raw prompts without their pictures, or raises ``CannotRemoveImage``."""
        texts = [prompt for prompt in self.prompts if isinstance(prompt, str)]
        place = getattr(self.processor, "image_token", None)
        if not isinstance(place, str):
            raise CannotRemoveImage(
                f"{type(self.processor).__name__} names no placeholder of a picture: use its chat template, or give the"
                " prompt without a picture yourself"
            )
        counts = [len(shown) for shown in self.pictures]
        span = picture_span(self.processor)
        # First way: what the chat template writes for a picture, if it stands in the prompts as often as they have pictures
        # and no placeholder is left over.
        if span is not None and [text.count(span) for text in texts] == counts:
            bare = tuple(text.replace(span, "") for text in texts)
            if not any(place in text for text in bare):
                return bare
        # Second way: the placeholder alone, if the tokens confirm it. Without this check two words could grow together, or
        # a marker beside the picture could be left behind.
        bare = tuple(text.replace(place, "") for text in texts)
        if [text.count(place) for text in texts] != counts or not self._removes_placeholders(bare, place):
            raise CannotRemoveImage(
                f"it is not certain what the raw prompt {texts[0]!r} would be without its picture: write the picture as the"
                " chat template does, or use the chat template"
            )
        return bare

    def _removes_placeholders(self, bare: tuple[str, ...], place: str) -> bool:
        """Returns whether the tokens of ``bare`` are those of the prompts without their placeholders, and all of them text.

        A special token beside the placeholder may belong to the picture, as ``<|vision_start|>`` does.
        """
        tokenizer = self.processor.tokenizer
        image = getattr(self.processor, "image_token_id", None)
        # Not every processor has ``image_token_id``, but each of these has the placeholder as a text.
        image = tokenizer.convert_tokens_to_ids(place) if image is None else image
        ordinary = {getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "unk")}
        special = set(tokenizer.get_added_vocab().values()) | set(tokenizer.all_special_ids)
        # A begin mark stands beside the picture in many prompts, and belongs to the text.
        special -= ordinary | {image}
        # The processor repeats the placeholder once for every token of the
        # picture, so the ids are compared and not the texts.
        full = self.inputs()
        without = replace(self, prompts=bare, pictures=tuple(() for _ in bare)).inputs()
        for row, mask, other, kept in zip(
            full["input_ids"],
            full["attention_mask"],
            without["input_ids"],
            without["attention_mask"],
            strict=True,
        ):
            ids = row[mask != 0].tolist()
            near = {
                ids[beside]
                for at, token in enumerate(ids)
                if token == image
                for beside in (at - 1, at + 1)
                if 0 <= beside < len(ids)
            }
            if near & special or [one for one in ids if one != image] != other[kept != 0].tolist():
                return False
        return True


def render(processor: Any, messages: Sequence[Message]) -> str:
    """Returns a conversation as the processor's chat template writes it, up to where the model's answer begins.

    Raises:
        NoChatTemplate: the processor has no template.
        BadPrompt: the template refuses the messages.
    """
    from jinja2 import TemplateError

    if not getattr(processor, "chat_template", None):
        raise NoChatTemplate(
            f"{type(processor).__name__} has no chat template: pass the whole prompt, placeholder of the picture"
            " included, as a raw prompt"
        )
    try:
        text: str = processor.apply_chat_template(
            [dict(message) for message in messages], add_generation_prompt=True
        )
    except TemplateError as error:
        raise BadPrompt(f"the chat template refuses the conversation: {first_line(error)}") from error
    return text


def picture_span(processor: Any) -> str | None:
    """Returns what the chat template writes for a picture, such as ``<image>\\n``; None where that cannot be told.

    It is the text by which a prompt with a picture is longer than the same prompt without one, if that is one span.
    """
    if not getattr(processor, "chat_template", None):
        return None
    try:
        shown = render(processor, [_user(_PROBE, image=True)])
        bare = render(processor, [_user(_PROBE)])
    except BadPrompt:
        # A template may insist on a picture.
        return None
    # The two texts part where the span begins: the question that follows it shares no character with it.
    start = next(
        (at for at, (a, b) in enumerate(zip(shown, bare, strict=False)) if a != b), min(len(shown), len(bare))
    )
    span = shown[start : start + len(shown) - len(bare)]
    # A template may change the prompt in other places as well, for example by another system message.
    return span if span and shown[:start] + shown[start + len(span) :] == bare else None


def _text(text: str) -> dict[str, str]:
    """Returns a text part of a message."""
    return {"type": "text", "text": text}


def _user(question: str, *, image: bool = False) -> Message:
    """Returns a message of the user, with the picture before the question if there is one."""
    return {"role": "user", "content": [*([{"type": "image"}] if image else []), _text(question)]}


def _parts(message: Message) -> list[Mapping[str, Any]]:
    """Returns the parts of a message, whose content may also be one string."""
    content = message["content"]
    return [_text(content)] if isinstance(content, str) else list(content)


def _last_user(messages: Sequence[Message]) -> int:
    """Returns the number of the last message of the user, or raises ``InputError``."""
    for at in range(len(messages) - 1, -1, -1):
        if messages[at]["role"] == "user":
            return at
    raise InputError("the conversation holds no message of the user: add a question")


def _with_question(messages: tuple[Message, ...], question: str) -> tuple[Message, ...]:
    """Returns a conversation with another text in the last message of the user; its pictures stay before the text."""
    at = _last_user(messages)
    kept = [part for part in _parts(messages[at]) if part["type"] != "text"]
    asked = {**messages[at], "content": [*kept, _text(question)]}
    return (*messages[:at], asked, *messages[at + 1 :])
