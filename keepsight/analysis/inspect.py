"""Describes what Keepsight finds in a model, and tries which methods run on it. No list of model names is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from keepsight.errors import (
    InputError,
    KeepsightError,
    NeedsCalibration,
    NoImageTokens,
    UnsupportedModel,
    first_line,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from keepsight.target import Target

GREY = (128, 128, 128)
"""The colour of pictures that are made for trials, in RGB."""
T = TypeVar("T")


@dataclass(frozen=True)
class Trial:
    """The result of generating two tokens under a method at its defaults.

    Args:
        method: the name of the method.
        runs: whether both tokens could be generated.
        why_not: the reason, if they could not.
        missing: whether the method only lacks something that the user could give, such as a calibration.
    """

    method: str
    runs: bool
    why_not: str | None = None
    missing: bool = False


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What was found in a model. None stands for what its configuration does not say.

    Args:
        model_class, family: the class of the model, and the ``model_type`` of its configuration.
        decoder, layers, heads, kv_heads, hidden_size: class and dimensions of the text decoder.
        attention: the attention function in transformers (``sdpa``, ``eager``, …).
        dtype, devices: data type and devices of the weights.
        image_token: id and text of the placeholder of a picture.
        markers: ids and texts of the tokens that open, close or divide a picture, as the configuration names them.
        pictures: for each picture (``336x336`` or a file), the number of its tokens, and that of its whole prompt.
        trials: the result of each method at its defaults.
        notes: sentences about fallbacks, slow settings, and tokens that are easily missed.
    """

    model_class: str
    family: str
    decoder: str | None
    layers: int | None
    heads: int | None
    kv_heads: int | None
    hidden_size: int | None
    attention: str | None
    dtype: str
    devices: tuple[str, ...]
    image_token: tuple[int, str] | None
    markers: tuple[tuple[int, str], ...]
    pictures: Mapping[str, tuple[int, int]]
    trials: tuple[Trial, ...]
    notes: tuple[str, ...]


def inspect_model(
    model: Any, processor: Any, pictures: Mapping[str, Image], prompt: str, *, raw: bool = False
) -> Inspection:
    """Read a model's configuration, and try every method on the first of some pictures.

    Args:
        model: a loaded model of transformers.
        processor: its processor, with a ``tokenizer``.
        pictures: at least one picture, by the name under which it is reported.
        prompt, raw: see ``source.prompts.prepare``.

    Raises:
        InputError: there are no pictures.
    """
    if not pictures:
        raise InputError("inspecting needs at least one picture")
    notes: list[str] = []
    prepared: dict[str, Any] = {}
    refusal = None
    for name, picture in pictures.items():
        try:
            inputs = _prepared(processor, picture, prompt, raw)
        except KeepsightError as error:
            # The first refusal is kept as the reason why no method could be tried; each one becomes a note.
            refusal = refusal or error
            notes.append(f"no prompt for {name}: {error}")
            continue
        prepared[name] = inputs.to(model.device, dtype=model.dtype)
    # One picture is enough for the trials, since whether a method runs depends on the model.
    first = next(iter(prepared.values()), None)
    return Inspection(
        **_describe(model, processor),
        pictures=_count(model, prepared),
        trials=try_methods(model, first, refusal),
        notes=(*notes, *take_notes(model, processor, first)),
    )


def grey_picture(width: int, height: int) -> Image:
    """Returns a uniformly grey RGB picture, for counting tokens and for trials."""
    from PIL import Image

    return Image.new("RGB", (width, height), GREY)


def try_methods(
    model: Any, inputs: Mapping[str, Any] | None, refusal: KeepsightError | None = None
) -> tuple[Trial, ...]:
    """Generate two tokens under every method at its defaults.

    Args:
        model: a loaded model of transformers.
        inputs: the model inputs of one prompt with a picture; None if none could be made.
        refusal: the reason why there are no inputs.
    """
    from keepsight.registry import methods
    from keepsight.target import check_generates

    # A model that cannot generate refuses every method for one and the same reason.
    try:
        check_generates(model)
    except UnsupportedModel as error:
        return tuple(Trial(name, False, str(error)) for name in methods())
    if inputs is None:
        return tuple(Trial(name, False, str(refusal)) for name in methods())
    return tuple(_try(model, inputs, name, method()) for name, method in methods().items())


def _try(model: Any, inputs: Mapping[str, Any], name: str, recipe: Any) -> Trial:
    """Returns the result of generating two tokens under one method."""
    from keepsight.inference.generation import dry_run

    try:
        dry_run(model, inputs, [recipe])
    except NeedsCalibration as error:
        return Trial(name, False, str(error), missing=True)
    except KeepsightError as error:
        return Trial(name, False, str(error))
    except Exception as error:
        # Whatever a model of an unknown family raises is the answer to the question whether the method runs on it.
        return Trial(name, False, f"unexpected {type(error).__name__}: {first_line(error)}; please report it")
    return Trial(name, True)


def _prepared(processor: Any, picture: Image, prompt: str, raw: bool) -> Any:
    """Returns the inputs of one question. Without a chat template the question is a raw prompt, and where it lacks a
    placeholder of the picture, one is written before it."""
    from keepsight.source.prompts import BadPrompt, prepare

    token = getattr(processor, "image_token", None)
    try:
        if raw or token is None or getattr(processor, "chat_template", None):
            return prepare(processor, [picture], prompt, raw=raw)
        try:
            # The prompt of the user may already hold the placeholder, and a second one would ask for a
            # second picture. It is therefore tried as it is before a placeholder is added.
            return prepare(processor, [picture], prompt, raw=True)
        except (BadPrompt, NoImageTokens):
            return prepare(processor, [picture], f"{token}\n{prompt}", raw=True)
    except KeepsightError:
        raise
    except Exception as error:
        # An unusual processor must not keep the rest of the report from the user.
        raise BadPrompt(
            f"{type(processor).__name__} makes no prompt of it: {type(error).__name__}: {first_line(error)}"
        ) from error


def _describe(model: Any, processor: Any) -> dict[str, Any]:
    """Returns the fields of ``Inspection`` that are read from the configuration."""
    from keepsight.target import Target

    config = _text_config(model)
    # The target only serves to read the configuration, so any ids will do.
    target = _or_none(lambda: Target(model, {"input_ids": _any_ids(model)}))
    decoder = _or_none(lambda: type(target.decoder).__name__) if target else None
    token = _or_none(lambda: target.image_token_id) if target else None
    if token is None:
        token = getattr(model.config, "image_token_id", getattr(model.config, "image_token_index", None))
    read = processor.tokenizer.convert_ids_to_tokens
    heads = getattr(config, "num_attention_heads", None)
    return {
        "model_class": type(model).__name__,
        "family": model.config.model_type,
        "decoder": decoder,
        "layers": getattr(config, "num_hidden_layers", None),
        "heads": heads,
        "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "hidden_size": getattr(config, "hidden_size", None),
        "attention": getattr(config, "_attn_implementation", None),
        "dtype": str(model.dtype).removeprefix("torch."),
        "devices": tuple(sorted({str(parameter.device) for parameter in model.parameters()})),
        "image_token": None if token is None else (token, read(token)),
        "markers": tuple((one, read(one)) for one in sorted(target.marker_ids)) if target else (),
    }


def _text_config(model: Any) -> Any:
    """Returns what ``Target.text_config`` does, also for a model that no ``Target`` can be made of."""
    return model.config.get_text_config(decoder=True)


def _any_ids(model: Any) -> Any:
    """Returns input ids ``(1, 1)`` that satisfy ``Target``, whatever they mean."""
    import torch

    return torch.zeros(1, 1, dtype=torch.long, device=model.device)


def _or_none(look: Callable[[], T]) -> T | None:
    """Returns what ``look`` gives, or None where it raises one of this package's errors: the report says then less."""
    try:
        return look()
    except KeepsightError:
        return None


def _count(model: Any, prepared: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Returns for each picture the number of placeholders in its prompt, and the length of the prompt in tokens."""
    token = getattr(model.config, "image_token_id", getattr(model.config, "image_token_index", None))
    return {
        name: (int((inputs["input_ids"] == token).sum()), int(inputs["input_ids"].shape[1]))
        for name, inputs in prepared.items()
    }


def take_notes(model: Any, processor: Any, inputs: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Returns sentences for a user who chooses a method: about fallbacks, slow settings, and tokens that are easily missed.

    Args:
        model: a loaded model of transformers.
        processor: its processor, with a ``tokenizer``.
        inputs: the model inputs of one prompt with a picture; None leaves out the notes that need one.
    """
    from keepsight.engines.hf.fused_pass import why_not_fused, why_not_worth_it
    from keepsight.target import Target

    config = _text_config(model)
    notes = []
    kernel = getattr(config, "_attn_implementation", None)
    if kernel in ("eager", "flex_attention"):
        notes.append(
            f"attention {kernel}: var, vhr and pai stand on sdpa or a flash kernel; model.set_attn_implementation('sdpa')"
        )
    # Layer types are named by what their attention sees, such as full_attention or sliding_attention.
    kinds = getattr(config, "layer_types", None) or ()
    if sliding := sum("sliding" in kind for kind in kinds):
        notes.append(
            f"{sliding} of {len(kinds)} layers see a sliding window of {config.sliding_window} tokens: there a picture"
            " falls out of sight of a long answer, and beam search repeats an amateur's prefill"
        )
    # Layers of other kinds are named mamba or conv, for example; linear_attention has the word and no softmax.
    if linear := sum("attention" not in kind or "linear" in kind for kind in kinds):
        notes.append(f"{linear} of {len(kinds)} layers have no softmax attention: nothing there to edit")
    if crossed := getattr(config, "cross_attention_layers", None):
        notes.append(
            f"layers {', '.join(map(str, crossed))} see the picture by cross-attention: the count of visual tokens is that"
            " of placeholders in the text"
        )
    if model.device.type == "cpu" and str(model.dtype) in ("torch.float16", "torch.bfloat16"):
        notes.append(f"{model.dtype} on a CPU is slow; float32 is usually faster there (--dtype float32)")
    if getattr(model, "quantization_method", None) is not None:
        notes.append("quantised weights: methods run on what the dequantised layers put out")
    if inputs is None:
        return tuple(notes)
    target = _or_none(lambda: Target(model, inputs))
    # Sharing passes may be impossible, or possible without saving time; either way the methods run apart under "auto".
    if target is not None and (apart := why_not_fused(target) or why_not_worth_it(target)):
        notes.append(f"vcd, m3id and pai's guidance run in passes of their own: {apart}")
    unnamed = _or_none(lambda: unnamed_markers(target, processor.tokenizer)) if target else None
    if unnamed:
        written = ", ".join(f"{one} ({processor.tokenizer.convert_ids_to_tokens(one)})" for one in unnamed)
        notes.append(
            f"tokens {written} stand in or beside the picture and the configuration does not name them: give them to m3id"
            f" as also_drop={'+'.join(map(str, unnamed))} if a prompt without picture lacks them"
        )
    return tuple(notes)


def unnamed_markers(target: Target, tokenizer: Any) -> Sequence[int]:
    """Returns the special tokens within or directly beside the picture that the configuration does not name.

    Raises:
        KeepsightError: the model names no image token, or the prompt holds none.
    """
    row = target.input_ids[0].tolist()
    places = target.image_mask[0].nonzero().flatten().tolist()
    # The first prompt of the batch stands for all; one token on each
    # side of the picture can be its opening or closing mark.
    near = set(row[max(places[0] - 1, 0) : places[-1] + 2])
    # A begin mark often stands right before the picture, and does not belong to it.
    ordinary = {getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "unk")}
    # A tokenizer may hold row separators as added tokens that are not among its special ones.
    special = set(tokenizer.get_added_vocab().values()) | set(tokenizer.all_special_ids)
    return sorted((near & special) - {target.image_token_id} - target.marker_ids - ordinary)
