"""What methods are made of. A method names its parts; an engine (``keepsight.engines``) puts them in place.

* ``Contrast`` changes the scores of the next token, by comparing the model with one or several amateurs: the same model
  with another ``View`` of the prompt.
* ``Edit`` changes activations inside the decoder, at the places that TransformerLens names.
* ``Lens`` changes the scores of the next token by what earlier layers would predict.
* ``Prelude`` runs passes or whole generations before the generation, to measure what the other parts need.

Parts are made anew for every generation, so state may live in them. A new method needs nothing but this module, the
views in ``keepsight.decoding.views`` and ``keepsight.method``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from keepsight.target import Target


class View(ABC):
    """What an amateur sees instead of the main prompt.

    Subclasses are frozen dataclasses: two methods that ask for views with the same inputs share one amateur.
    """

    @abstractmethod
    def inputs(self, target: Target) -> dict[str, Any]:
        """The amateur's model inputs: ``input_ids`` with one row for each row of ``target``, and what goes with them.

        Prompts may be longer or shorter than the main ones. They are left-padded, and have an ``attention_mask``.

        Raises:
            UnsupportedModel, NoImageTokens, InputError: the view cannot be made of these inputs.
        """

    @property
    def edited(self) -> bool:
        """Whether edits of the main passes act on the amateur's passes as well. Here: they do not."""
        return False


Combine: TypeAlias = Callable[[Tensor, "Sequence[Tensor] | None", int], Tensor]
"""A formula: float32 expert scores ``(rows, vocab)``, the logits of each amateur in the same shape (None where they were
not needed), and the number of tokens generated so far, to new scores."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Contrast:
    """New scores from the model's own and those of amateurs, at every step of a generation.

    Args:
        views: what each amateur sees, at least one.
        combine: the formula. It gets float32 scores ``(rows, vocab)`` as earlier processors left them, and the amateurs'
            logits in the order of ``views``. What it returns is normalised to log-probabilities, except in rows that it
            leaves as they are. It must not write into its arguments.
        decided: ``(rows,)`` bool for expert scores and a step: rows whose outcome does not depend on the amateurs. If
            all rows are decided, the amateurs need not run, and ``combine`` gets None. Default: no row is.
        needed: whether the amateurs matter once a number of tokens has been generated. Default: always.
    """

    views: Sequence[View]
    combine: Combine
    decided: Callable[[Tensor, int], Tensor] | None = None
    needed: Callable[[int], bool] | None = None


@dataclass(frozen=True, eq=False)
class HookContext:
    """Where in a generation an edit is called.

    Rows and columns are counted from the start of the padded prompt, whatever part of it a forward pass holds.
    """

    layer: int
    first: int
    """Number of the pass's first token."""
    rows: int
    """Tokens in this pass."""
    prompt: int
    """Length of the padded prompt."""
    image: Tensor
    """``(batch, prompt)`` bool: where the prompt holds the picture; batch as ``generate`` expanded it."""
    attention_mask: Tensor
    """``(batch, prompt)`` bool: where the prompt holds a token that counts, and no padding."""

    @property
    def step(self) -> int:
        """Tokens generated before this pass; 0 while the prompt is read."""
        return max(0, self.first - self.prompt + 1)

    @property
    def last_prompt_row(self) -> int | None:
        """Index, within this pass, of the prompt's last token; None if the pass does not hold it."""
        index = self.prompt - 1 - self.first
        return index if 0 <= index < self.rows else None

    def row_numbers(self) -> Tensor:
        """``(rows,)``: the number of every row of this pass."""
        return torch.arange(self.first, self.first + self.rows, device=self.image.device)

    def image_columns(self, keys: int, first_key: int) -> Tensor:
        """``(batch, keys)`` bool: which of ``keys`` columns, beginning with number ``first_key``, are the picture."""
        return self._columns(self.image, keys, first_key)

    def span(self, name: str, keys: int, first_key: int = 0) -> Tensor:
        """``(batch, keys)`` bool: the columns of one part of the text.

        Args:
            name: ``system``, the prompt's tokens before its first picture; ``picture``; ``question``, the prompt's tokens
                after its first picture that are no picture; ``answer``, generated tokens.
        """
        if name == "answer":
            numbers = torch.arange(first_key, first_key + keys, device=self.image.device)
            return (numbers >= self.prompt)[None].expand(self.image.shape[0], -1)
        begun = self.image.cumsum(-1) > 0
        text = self.attention_mask & ~self.image
        spans = {"system": text & ~begun, "picture": self.image, "question": text & begun}
        return self._columns(spans[name], keys, first_key)

    def _columns(self, prompt: Tensor, keys: int, first_key: int) -> Tensor:
        columns = prompt.new_zeros(prompt.shape[0], max(self.prompt, first_key + keys))
        columns[:, : self.prompt] = prompt
        return columns[:, first_key : first_key + keys]


class Edit:
    """A change of activations in some decoder layers. A subclass overrides the places where it acts; others cost nothing.

    The places have the names of TransformerLens: ``attn_scores`` and ``attn_pattern`` before and after the softmax,
    ``head_out`` (``hook_z`` there), ``attn_out``, ``mlp_out``, ``resid_pre``, ``resid_post``. The first two name the query
    rows that they change (``rows``); only those are computed anew with explicit attention weights, all others stay with
    the fast kernel, bit for bit.

    An engine checks that every layer in ``layers`` exists, and that the first pass over the prompt has called the edit in
    each of them at each place; otherwise it raises ``UnsupportedModel`` with the name of the module that was not reached.
    """

    layers: frozenset[int] = frozenset()
    """Numbers of the decoder layers in which it acts."""

    def rows(self, context: HookContext) -> Tensor:
        """``(batch, rows)`` bool on the context's device: query rows whose attention scores or pattern are changed.

        The same in every layer of a pass. Here: all of them.
        """
        shape = (context.image.shape[0], context.rows)
        return torch.ones(shape, dtype=torch.bool, device=context.image.device)

    def attn_scores(self, scores: Tensor, image: Tensor, context: HookContext) -> Tensor:
        """New scaled scores ``(batch, heads, some rows, keys)``, before the mask; ``image`` is ``(batch, keys)``."""
        return scores

    def attn_pattern(self, pattern: Tensor, image: Tensor, context: HookContext) -> Tensor:
        """New attention probabilities ``(batch, heads, some rows, keys)``, float32, rows summing to 1."""
        return pattern

    def head_out(self, out: Tensor, context: HookContext) -> Tensor:
        """New outputs of the heads, ``(batch, rows, heads, head_dim)``, before the output projection."""
        return out

    def attn_out(self, hidden: Tensor, context: HookContext) -> Tensor:
        """New output of the attention block ``(batch, rows, hidden)``, before it is added to the residual stream."""
        return hidden

    def mlp_out(self, hidden: Tensor, context: HookContext) -> Tensor:
        """New output of the MLP ``(batch, rows, hidden)``, before it is added to the residual stream."""
        return hidden

    def resid_pre(self, hidden: Tensor, context: HookContext) -> None:
        """Reads the residual stream ``(batch, rows, hidden)`` before the layer; it is not changed there."""

    def resid_post(self, hidden: Tensor, context: HookContext) -> Tensor:
        """New residual stream ``(batch, rows, hidden)`` after the layer."""
        return hidden

    def overrides(self, place: str) -> bool:
        """Whether the edit acts at a place."""
        return getattr(type(self), place) is not getattr(Edit, place)


PLACES = ("attn_scores", "attn_pattern", "head_out", "attn_out", "mlp_out", "resid_pre", "resid_post")
"""Where an ``Edit`` can act."""


class LayerLogits(Protocol):
    """What some layers predict for the next token."""

    def stacked(self) -> Tensor:
        """``(layers, rows, vocab)`` float32 logits, one product with the output projection for each layer."""

    def mean(self) -> Tensor:
        """``(rows, vocab)`` float32: the mean over layers, for the price of one product where the projection is linear."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Lens:
    """New scores from the model's own and the logits of some of its layers at the last position (a logit lens).

    Args:
        layers: numbers of decoder layers; what is read is the residual stream after each.
        final_norm: whether the stream passes the model's final norm before the output projection.
        combine: float32 scores ``(rows, vocab)``, the layers' logits, and the number of tokens generated so far, to new
            scores; normalised afterwards to log-probabilities.
    """

    layers: Sequence[int]
    combine: Callable[[Tensor, LayerLogits, int], Tensor]
    final_norm: bool = False


class Passes(Protocol):
    """What a prelude may do with the model."""

    def prefill(self, view: View, *observers: Edit) -> None:
        """One pass over a view's prompt, one row for each prompt, in which the ``observers`` alone act.

        A pass without a picture is also the prefill of an amateur that has the same view, which then costs nothing more.
        """

    def generate(self, view: View, *observers: Edit, **options: Any) -> Tensor:
        """``model.generate`` for a view's prompt without any mitigation, in which the ``observers`` alone act.

        Returns:
            ``(rows, n)`` generated tokens, without the prompt.
        """


@dataclass(frozen=True, kw_only=True, eq=False)
class Prelude:
    """Passes and generations that are run before the generation begins.

    Args:
        run: called once, before the first pass of the generation.
    """

    run: Callable[[Passes], None]


Part: TypeAlias = Contrast | Edit | Lens | Prelude


def describe(part: Part) -> str:
    """What a part does, for messages: ``changes head_out``, ``contrasts``."""
    if isinstance(part, Contrast):
        return "contrasts the model with " + ", ".join(type(view).__name__ for view in part.views)
    if isinstance(part, Lens):
        return "reads the logits of earlier layers"
    if isinstance(part, Prelude):
        return "runs passes before the generation"
    return "changes " + " and ".join(place for place in PLACES if part.overrides(place))
