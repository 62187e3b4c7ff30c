"""Measure how much attention a model's answers pay to the picture, to each part of the text, and to themselves.

The figures that are computed from it, MDI and AEI, are in ``keepsight.eval.modality_dominance.score``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from keepsight.analysis.observers import AttentionObserver, generate_observed
from keepsight.errors import UnsupportedModel
from keepsight.eval.modality_dominance.score import PARTS, Masses
from keepsight.inference.generation import Generation
from keepsight.parts import HookContext
from keepsight.source.prompts import prepare
from keepsight.target import Target

if TYPE_CHECKING:
    from PIL.Image import Image

    from keepsight.method import Method

PADDING = -1
"""The part number of a padding token, which is none of ``PARTS`` and so counts nowhere."""


class RecordAttentionMass(AttentionObserver):
    """Sums up the attention of each predicting row to each part of its context: one number by layer, head and part.

    Args:
        layers: numbers of the decoder layers that are observed.
        parts: ``(prompt,)``, for each token of the prompt the number of its part in ``PARTS``, or ``PADDING``.
    """

    def __init__(self, layers: Collection[int], parts: Tensor) -> None:
        super().__init__(layers)
        self.parts = parts
        self.sums: dict[int, Tensor] = {}
        self.shares: dict[tuple[int, int], Tensor] = {}
        self._columns: dict[Any, Tensor] = {}

    def observe(self, given: Tensor, number: int, first_key: int, context: HookContext) -> None:
        prompt = len(self.parts)
        # With a sliding window the keys begin at ``first_key``, and once it
        # has passed the whole prompt none of them belongs to it.
        here = max(prompt - first_key, 0)
        # One product adds up all parts of the prompt. Generated tokens are a part of their own, whatever they say.
        mass = given[:, :here].float() @ self._belongs(given.device)[first_key:]
        mass[:, PARTS.index("own")] = given[:, here:].sum(-1)
        self.sums[context.layer] = self.sums[context.layer] + mass if context.layer in self.sums else mass
        self.shares[number, context.layer] = mass[:, PARTS.index("image")].mean()

    def _belongs(self, device: torch.device) -> Tensor:
        """Returns ``(prompt, parts)``, 1 where a token belongs to a part and 0 elsewhere."""
        if device not in self._columns:
            # The layers of a model may lie on several devices, each of which keeps its own copy.
            belongs = self.parts[:, None] == torch.arange(len(PARTS))[None]
            self._columns[device] = belongs.float().to(device)
        return self._columns[device]

    def masses(self, target: Target, count: int) -> Masses:
        """Returns what was recorded while ``count`` tokens were generated.

        Args:
            target: the model and the inputs of the generation.
            count: the number of generated tokens, 1 or more.

        Raises:
            UnsupportedModel: a layer's attention could not be observed.
        """
        layers = sorted(self.layers)
        rows = range(target.prompt - 1, target.prompt - 1 + count)
        # Some layers have no softmax attention at all (linear attention, for example). A mean
        # without them would be a figure of another model, so it is refused.
        if missing := [layer for layer in layers if (rows[0], layer) not in self.shares]:
            raise UnsupportedModel(f"{target.name}: layer {missing[0]} has no attention that can be observed")
        attention = torch.stack([self.sums[layer].cpu() for layer in layers])
        shares = [torch.stack([self.shares[row, layer] for row in rows]).cpu() for layer in layers]
        tokens = count * np.array(
            [int((self.parts == part).sum()) for part in range(len(PARTS))], dtype=float
        )
        # The first row sees no generated token, the next row one of them, and so on.
        tokens[PARTS.index("own")] = count * (count - 1) / 2
        return Masses(attention.double().numpy(), tokens, torch.stack(shares, dim=1).double().numpy())


def special_ids(target: Target, tokenizer: Any = None) -> frozenset[int]:
    """Returns the ids of tokens that are marks and not text: the tokenizer's special tokens, and those that the
    configuration names.

    Without a tokenizer the marks of the chat template are not known, so that they count as text.
    """
    config = target.text_config
    found = set(target.marker_ids)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        named = getattr(config, name, None)
        found |= {token for token in (named if isinstance(named, list) else [named]) if token is not None}
    if tokenizer is not None:
        # ``all_special_ids`` holds the tokens with a role (``<s>``, ``</s>``), but not all marks
        # of a chat template, which are only flagged as special among the added tokens.
        added = getattr(tokenizer, "added_tokens_decoder", {})
        marks = {token for token, content in added.items() if getattr(content, "special", False)}
        # A word that the tokenizer does not know is text.
        found |= (marks | set(tokenizer.all_special_ids)) - {getattr(tokenizer, "unk_token_id", None)}
    return frozenset(found)


def parts_of(target: Target, special: Collection[int]) -> Tensor:
    """Returns the part ``(prompt,)`` that each token of a prompt belongs to, as ``RecordAttentionMass`` takes it.

    ``PARTS`` says what the parts are.
    """
    ids, image = target.input_ids[0].cpu(), target.image_mask[0].cpu()
    shown = target.attention_mask[0].cpu() != 0
    number = PARTS.index
    places = torch.arange(len(ids))
    # The order of the next lines matters, since each overrides those before it: a mark is no text, the begin mark
    # is no other mark, and what stands first in the prompt counts as a begin mark even if it is text.
    parts = torch.where(places < image.nonzero().min(), number("before"), number("after"))
    if special:
        parts[torch.isin(ids, torch.tensor(sorted(special)))] = number("special")
    begin = getattr(target.text_config, "bos_token_id", None)
    if isinstance(begin, int):
        parts[ids == begin] = number("bos")
    parts[shown.nonzero().min()] = number("bos")
    # Tokens of the picture and padding come last, so no rule about text can claim them.
    parts[image] = number("image")
    parts[~shown] = PADDING
    return parts


def attention_mass_recorder(target: Target, special: Collection[int] | None = None) -> RecordAttentionMass:
    """Returns a fresh recorder for one generation.

    Args:
        target: the model and its inputs.
        special: ids of tokens that are marks and not text; default: ``special_ids`` without a tokenizer.

    Raises:
        UnsupportedModel: the picture is reached by cross-attention.
        NoImageTokens: the prompt holds no picture.
    """
    target.check_image_in_context("text dominance")
    chosen = special_ids(target) if special is None else special
    return RecordAttentionMass(range(len(target.layers)), parts_of(target, chosen))


def measure(
    model: Any,
    inputs: Any,
    *methods: Method,
    generation: Generation | None = None,
    special: Collection[int] | None = None,
) -> Masses:
    """Answer one prompt under ``methods``, and sum up the attention of the rows that predict its tokens, in every layer.

    The attention is that after all edits of the methods, which is what the values are mixed by. The passes of amateurs are
    left out. Only sums are kept, so that memory does not grow with the prompt.

    Args:
        model: an image-text-to-text model of transformers.
        inputs: what the model's processor returned for one prompt, with one picture or several.
        methods: the methods to answer under; none is the plain model.
        generation: how tokens are chosen, with one beam; default: greedy search.
        special: ids of tokens that are marks; default: ``special_ids`` without a tokenizer.

    Cost: one generation, whose predicting rows run with explicit weights; they agree with the model's own kernel up to
        rounding.

    Raises:
        UnsupportedModel: the picture is reached by cross-attention, or a layer's attention cannot be observed.
        NoImageTokens: the prompt holds no picture.
        InputError: more than one prompt.
        InvalidParameter: beam search.
    """
    target = Target(model, inputs)
    recorder = attention_mass_recorder(target, special)
    ids = generate_observed(target, methods, generation, recorder)
    return recorder.masses(target, len(ids))


def measure_all(
    model: Any,
    processor: Any,
    pictures: Iterable[Image],
    prompt: str,
    *methods: Method,
    raw: bool = False,
    generation: Generation | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> list[Masses]:
    """Returns what ``measure`` gives for one prompt about each of some pictures, one after the other.

    Args:
        pictures: taken from the iterable one by one.
        prompt: the question about each picture.
        methods: the methods to answer under; none is the plain model.
        raw: see ``keepsight.source.prompts.prepare``, whose errors this raises as well.
        generation: as for ``measure``.
        advance: called with 1 after each picture.
    """
    found = []
    for picture in pictures:
        inputs = prepare(processor, [picture], prompt, raw=raw).to(model.device, dtype=model.dtype)
        # The tokenizer knows the marks of the chat template, which the configuration alone does not name.
        special = special_ids(Target(model, inputs), processor.tokenizer)
        found.append(measure(model, inputs, *methods, generation=generation, special=special))
        advance(1)
    return found
