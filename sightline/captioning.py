"""The only loop over a model: pictures and a prompt in, mitigated answers out, one batch at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.errors import InputError, InvalidParameter, NoImageTokens, UnsupportedModel
from sightline.upright import upright_rgb

if TYPE_CHECKING:
    from PIL.Image import Image

    from sightline.method import Method

DEMO = "demo"
"""The name that stands for the checkpoint inside this package."""


class BadImage(InputError):
    """A picture file is missing, truncated or no picture at all."""


class ModelNotLoaded(InputError):
    """A checkpoint could not be loaded; the message carries the first line of the reason."""


class NoChatTemplate(InputError):
    """The model's processor cannot wrap a question into a prompt."""


class BadPrompt(InputError):
    """The model's processor refuses a prompt."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How ``generate`` searches. The defaults are greedy decoding.

    Args:
        max_new_tokens: longest answer in tokens, 1 or more.
        num_beams: 1 or more; 1 is no beam search.
        sample: draw tokens instead of taking the best; from all tokens of ``top_p``, whatever top-k a checkpoint asks for.
        temperature: above 0; only with ``sample``.
        top_p: in (0, 1]; only with ``sample``.
        seed: of sampling. Every batch starts from it, so with a batch of one an answer does not depend on the others.

    Raises:
        InvalidParameter: a value is out of its range, or has no effect without ``sample``.
    """

    max_new_tokens: int = 128
    num_beams: int = 1
    sample: bool = False
    temperature: float | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "num_beams"):
            if getattr(self, name) < 1:
                raise InvalidParameter(f"{name}={getattr(self, name)} must be a whole number, 1 or more")
        for name, high in (("temperature", math.inf), ("top_p", 1.0)):
            value = getattr(self, name)
            if value is None:
                continue
            if not self.sample:
                raise InvalidParameter(
                    f"{name} has no effect on greedy or beam search: ask for sampling as well"
                )
            if not math.isfinite(value) or not 0 < value <= high:
                wanted = "a finite number above 0" if math.isinf(high) else f"above 0 and at most {high:g}"
                raise InvalidParameter(f"{name}={value} must be {wanted}")

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of ``model.generate``."""
        chosen: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "num_beams": self.num_beams}
        if not self.sample:
            return {**chosen, "do_sample": False}
        drawn = {"temperature": self.temperature or 1.0, "top_p": self.top_p or 1.0, "top_k": 0}
        return {**chosen, "do_sample": True, **drawn}


@dataclass(frozen=True)
class Answers:
    """What a model said about one batch of pictures.

    ``lengths`` counts what was generated for each, end marks included and padding not; ``prompt_lengths`` the tokens of each
    prompt, the picture's included and padding not; ``seconds`` is the wall time of ``generate`` alone, mitigation and the
    vision tower included, preparing pictures and decoding text not.
    """

    texts: tuple[str, ...]
    lengths: tuple[int, ...]
    prompt_lengths: tuple[int, ...]
    seconds: float

    @property
    def tokens(self) -> int:
        """Generated for all pictures together."""
        return sum(self.lengths)


def open_picture(path: Path) -> Image:
    """The whole picture in ``path``, upright and RGB.

    Raises:
        BadImage: no such file, not a picture, the file ends too early, or its numbers have no scale.
    """
    from PIL import Image, UnidentifiedImageError

    if not path.exists():
        raise BadImage(f"no such picture: {path}")
    if not path.is_file():
        raise BadImage(f"{path} is not a file: name the pictures one by one, or write {path}/*.jpg")
    try:
        with Image.open(path) as picture:
            return upright_rgb(picture)
    except InputError as error:
        raise BadImage(f"{path}: {error}") from None
    except UnidentifiedImageError:
        raise BadImage(f"{path} is not a picture that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise BadImage(f"{path} is too large: {error}") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise BadImage(f"{path} cannot be read ({error}): the file is damaged or incomplete") from None


def load(name: str, *, dtype: str = "auto", device_map: str | None = None) -> tuple[Any, Any]:
    """A checkpoint in evaluation mode and its processor.

    Args:
        name: a folder, a Hugging Face id, or ``demo``.
        dtype: ``auto`` takes the checkpoint's own (for ``demo``: float32), else a torch name such as ``bfloat16``.
        device_map: as transformers takes it (``auto``, ``cuda:1``); None is the CPU.

    Raises:
        ModelNotLoaded: with the first line of what transformers said.
        UnsupportedModel: the checkpoint does not take pictures, or has no processor.
        WeightsMissing: the package has no demo checkpoint.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING as CAPTIONERS

    where: str | Path = name
    if name == DEMO:
        from sightline.demo.model import checkpoint

        where, dtype = checkpoint(), "float32" if dtype == "auto" else dtype
    with _named(f"{name} (a folder with a checkpoint, a Hugging Face id, or {DEMO})"):
        config = AutoConfig.from_pretrained(where)
    if type(config) not in CAPTIONERS:
        raise UnsupportedModel(
            f"{name} is a {config.model_type} model and takes no pictures: use an image-text-to-text one"
        )
    with _named(name):
        processor = AutoProcessor.from_pretrained(where)
        if not hasattr(processor, "image_processor"):
            raise UnsupportedModel(
                f"{name} comes without a processor for pictures: save the model's processor beside it"
            )
        model = AutoModelForImageTextToText.from_pretrained(where, dtype=dtype, device_map=device_map)
    return model.eval(), processor


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Whatever a library raises while a checkpoint loads, as one line that names the checkpoint."""
    try:
        yield
    except UnsupportedModel:
        raise
    except Exception as error:
        raise ModelNotLoaded(f"cannot load {name}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


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
        raise BadPrompt(f"the chat template refuses the conversation: {_first_line(error)}") from error
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
            f"{type(processor).__name__} refuses the prompt {written}: {_first_line(error)}"
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


def answer(
    model: Any,
    processor: Any,
    pictures: Iterable[Image],
    prompt: str,
    *methods: Method | str,
    batch: int = 1,
    raw: bool = False,
    generation: Generation | None = None,
) -> Iterator[Answers]:
    """One answer to ``prompt`` for every picture, under ``methods``, as each batch is done.

    Nothing is open between two batches: the model is as it was while the caller looks at one.

    Args:
        methods: recipes or spec strings, composed in this order; none is the plain model.
        batch: pictures per ``generate``.
        raw: see ``prepare``.

    Raises:
        UnsupportedModel, NoImageTokens, NoChatTemplate, BadPrompt.
    """
    remaining = iter(pictures)
    while shown := list(islice(remaining, batch)):
        yield answer_batch(model, processor, shown, prompt, *methods, raw=raw, generation=generation)


def answer_batch(
    model: Any,
    processor: Any,
    pictures: Sequence[Image],
    prompt: str | Sequence[str],
    *methods: Method | str,
    raw: bool = False,
    generation: Generation | None = None,
    last: Sequence[Callable[[Any, Any], Any]] = (),
) -> Answers:
    """The answers to one ``generate`` over ``pictures``, each asked ``prompt`` or its own one of several.

    Args:
        methods, raw, generation: see ``answer``.
        last: logits processors that act after the methods.

    Raises:
        UnsupportedModel, NoImageTokens, NoChatTemplate, BadPrompt.
    """
    import torch

    from sightline.doors import attached

    generation = generation or Generation()
    inputs = prepare(processor, pictures, prompt, raw=raw).to(model.device, dtype=model.dtype)
    cuda = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), attached(model, inputs, *methods) as processors:
        torch.manual_seed(generation.seed)
        begun = _clock(cuda)
        written = model.generate(**inputs, **generation.arguments(), logits_processor=[*processors, *last])
        seconds = _clock(cuda) - begun
    rows = written[:, inputs["input_ids"].shape[1] :]
    texts = processor.batch_decode(rows, skip_special_tokens=True)
    ends = model.generation_config.eos_token_id
    return Answers(
        texts=tuple(text.strip() for text in texts),
        lengths=tuple(_length(row, ends) for row in rows.tolist()),
        prompt_lengths=tuple(inputs["attention_mask"].sum(-1).tolist()),
        seconds=seconds,
    )


def _clock(cuda: list[Any]) -> float:
    import torch

    for device in cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _length(row: list[int], ends: int | list[int] | None) -> int:
    stops = set(ends) if isinstance(ends, list) else {ends}
    return next((i for i, token in enumerate(row, 1) if token in stops), len(row))
