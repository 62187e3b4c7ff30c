"""An amateur: the same model with another prompt, and a cache of its own, whatever search the main generation does.

A logits processor sees ids and scores, never the cache, the beams' parents or the pictures. What it needs it rebuilds: the
prompt's inputs come from a view, a beam's parent is the earlier row with the longest common prefix, a text that is shorter
than last time is a rejected draft. Positions, masks and special cases are the model's own, from its
``prepare_inputs_for_generation`` and ``_update_model_kwargs_for_generation``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicSlidingWindowLayer
from transformers.utils import ModelOutput

from keepsight.engines.hf.edit_state import STATES, branch_forward, isolated_edits
from keepsight.engines.hf.growing_cache import GrowingLayer, growing_cache
from keepsight.engines.hf.patching import preserving_rope_deltas
from keepsight.target import IMAGE_KEYS, PIXEL_KEYS, Target, cache_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Branch:
    """A model's next-token logits for another prompt than the main one, followed by the same generated tokens.

    Args:
        model: the model that also generates.
        inputs: the amateur's prompt, one row for each prompt of the main batch; its own length, mask and pictures.
        edited: whether what edits the model's main passes edits these passes as well.
    """

    def __init__(self, model: PreTrainedModel, inputs: Mapping[str, Any], *, edited: bool = False) -> None:
        self._edited = edited
        self.model: Any = model
        self._ids: Tensor = inputs["input_ids"]
        self._inputs = {key: value for key, value in inputs.items() if key != "input_ids"}
        self.restart()

    def restart(self) -> None:
        """Forget every pass: the next call reads the prompt anew."""
        self._cache: DynamicCache | None = None
        self._base: dict[str, Any] = {}
        self._kwargs: dict[str, Any] = {}
        self._seen: Tensor | None = None
        self._last: Tensor | None = None
        self._prompt: Tensor = self._ids

    @property
    def inputs(self) -> dict[str, Any]:
        """The amateur's prompt."""
        return {"input_ids": self._ids, **self._inputs}

    @torch.no_grad()
    def __call__(self, generated: Tensor) -> Tensor:
        """``(rows, vocab)`` logits after ``generated`` ``(rows, n)``; rows of one prompt are adjacent."""
        if not self.knows(generated):
            with self._on_its_own():
                if self._seen is None:
                    self._prefill(generated)
                self._multiply(generated.shape[0])
                if not self.knows(generated):
                    self._follow(generated)
                if generated.shape[1] > self._seen.shape[1]:  # type: ignore[union-attr]
                    self._advance(generated)
        assert self._last is not None
        return self._last

    def answers_for(self, other: Branch) -> bool:
        """Whether both ask the same of the same model."""
        return (
            self.model is other.model and self._edited == other._edited and _alike(self.inputs, other.inputs)
        )

    @property
    def sees(self) -> bool:
        """Whether its prompt holds a picture."""
        return any(self._inputs.get(key) is not None for key in PIXEL_KEYS)

    @property
    def edited(self) -> bool:
        """Whether what edits the model's main passes edits these passes as well."""
        return self._edited

    def place(self) -> dict[str, Any]:
        """What edits that act in these passes must know of the prompt, as ``isolated_edits`` takes it."""
        image = torch.zeros_like(self._ids, dtype=torch.bool)
        if self.sees:
            image = self._ids == Target(self.model, self.inputs).image_token_id
        mask = self._inputs.get("attention_mask")
        return {"prompt": self._ids.shape[1], "image": image, "attention_mask": mask}

    @property
    def begun(self) -> bool:
        """Whether the prompt is in the cache."""
        return self._seen is not None

    @torch.no_grad()
    def begin(self) -> None:
        """Read the prompt under whatever edits act now, one row for each."""
        with branch_forward(self.model, self), preserving_rope_deltas(self.model):
            self._prefill(self._ids.new_empty(self._ids.shape[0], 0))

    def knows(self, generated: Tensor) -> bool:
        """Whether the logits after ``generated`` are at hand."""
        seen = self._seen
        return seen is not None and seen.shape == generated.shape and torch.equal(seen, generated)

    @torch.no_grad()
    def ready(self, generated: Tensor) -> bool:
        """Whether one pass is left to the logits after ``generated``; where rows must be reordered, that is done here."""
        if self._seen is None:
            return generated.shape[1] == 0
        self._multiply(generated.shape[0])
        if self.knows(generated):
            return False
        if not self._goes_on(generated):
            with self._on_its_own():
                self._follow(generated)
        return True

    @contextmanager
    def _on_its_own(self) -> Iterator[None]:
        """Inside the block passes are this branch's, and edits of the main passes do not act, unless they should."""
        with branch_forward(self.model, self), preserving_rope_deltas(self.model):
            state = STATES.get(self.model) if self._edited else None
            # Edits of the main passes must know this prompt. What is not edited is not asked for it: this
            # runs at every token
            edits = state.edits if state is not None else ()
            with isolated_edits(self.model, *edits, **(self.place() if edits else {})):
                yield

    def _prefill(self, generated: Tensor) -> None:
        model, ids = self.model, self._ids.to(generated.device)
        kwargs = {key: _to(value, generated.device) for key, value in self._inputs.items()}
        if kwargs.get("position_ids") is None and "position_ids" in signature(model.forward).parameters:
            kwargs["position_ids"] = model._prepare_position_ids_for_generation(ids, kwargs)
        if bool((kwargs["attention_mask"] == 1).all()):
            # As generate() does: no mask means no padding, and the kernels know a shorter way
            kwargs["attention_mask"] = None
        cache = growing_cache(model.config)
        name = cache_name(model.prepare_inputs_for_generation, model.forward)
        kwargs |= {name: cache, "use_cache": True}
        if model._supports_logits_to_keep():
            kwargs["logits_to_keep"] = 1
        prepared = model.prepare_inputs_for_generation(ids, is_first_iteration=True, **kwargs)
        self._last = model(**prepared, return_dict=True).logits[:, -1]
        # The pictures are in the cache now; what masks them per token (Mllama) goes on
        kwargs = {
            key: value
            for key, value in kwargs.items()
            if key not in IMAGE_KEYS | PIXEL_KEYS or key == "cross_attention_mask"
        }
        self._base = kwargs
        self._cache, self._prompt, self._seen = cache, ids, ids[:, :0]
        self._kwargs = dict(kwargs)
        self._multiply(generated.shape[0])

    def _multiply(self, rows: int) -> None:
        """As many rows as the search has, once: rows of one prompt adjacent, as generate() lays them out."""
        assert self._seen is not None
        assert self._cache is not None
        assert self._last is not None
        each = rows // self._seen.shape[0]
        if each == 1:
            return
        self._base = {key: _repeat(key, value, each) for key, value in self._base.items()}
        # Reordering is what every kind of layer knows, since beam search needs it; state-space layers know no repetition
        index = torch.arange(self._seen.shape[0], device=self._seen.device).repeat_interleave(each)
        self._cache.reorder_cache(index)  # type: ignore[arg-type]
        self._last = self._last.repeat_interleave(each, dim=0)
        self._prompt = self._prompt.repeat_interleave(each, dim=0)
        self._kwargs = dict(self._base)
        self._seen = self._prompt[:, :0]

    def _goes_on(self, generated: Tensor) -> bool:
        """Whether there is one row per prompt that goes on from where it was: nothing was reordered or rejected."""
        seen = self._seen
        assert seen is not None
        return generated.shape[0] == self._ids.shape[0] and torch.equal(seen, generated[:, : seen.shape[1]])

    def _follow(self, generated: Tensor) -> None:
        """Bring cache and bookkeeping to a prefix of ``generated`` that lacks at least one token."""
        seen = self._seen
        assert seen is not None
        if self._goes_on(generated):
            return
        parents, keep = match_prefixes(seen, generated, self._ids.shape[0])
        if keep < seen.shape[1]:
            self._rewind(generated, keep)
        elif not torch.equal(parents, torch.arange(len(parents), device=parents.device)):
            self._cache.reorder_cache(parents)  # type: ignore[union-attr,arg-type]
        self._seen = generated[:, :keep]

    def _rewind(self, generated: Tensor, keep: int) -> None:
        """Back to the first ``keep`` generated tokens: by cropping the cache where that is exact, else from the start."""
        seen = self._seen
        assert seen is not None
        assert self._cache is not None
        if generated.shape[0] == self._ids.shape[0] and _croppable(self._cache):
            self._cache.crop(-(seen.shape[1] - keep))
            self._kwargs = self._grown(self._base, keep)
            return
        self._prefill(generated)
        if keep:
            self._advance(generated[:, :keep])

    def _advance(self, generated: Tensor) -> None:
        """One pass over all of ``generated`` that the cache lacks; nothing is noted down unless it succeeds."""
        assert self._seen is not None
        new = generated.shape[1] - self._seen.shape[1]
        kwargs = self._grown(self._kwargs, new)
        prepared = self.model.prepare_inputs_for_generation(
            torch.cat([self._prompt, generated], dim=1), next_sequence_length=new, **kwargs
        )
        self._last = self.model(**prepared, return_dict=True).logits[:, -1]
        self._kwargs, self._seen = kwargs, generated

    def _grown(self, kwargs: dict[str, Any], tokens: int) -> dict[str, Any]:
        kwargs = dict(kwargs)
        # One token at a time, as in generate(): some models append a different value than their last one
        for _ in range(tokens):
            kwargs = self.model._update_model_kwargs_for_generation(
                ModelOutput(), kwargs, is_encoder_decoder=False
            )
        return kwargs


_BRANCHES: WeakKeyDictionary[Target, list[Branch]] = WeakKeyDictionary()


def branches_of(target: Target) -> list[Branch]:
    """The amateurs of one generation. Methods that need the same one share it."""
    return _BRANCHES.setdefault(target, [])


def shared_branch(target: Target, inputs: Mapping[str, Any], *, edited: bool = False) -> Branch:
    """The branch of this generation that has these inputs: a method's that came before, or a new one."""
    wanted = Branch(target.model, inputs, edited=edited)
    branches = branches_of(target)
    for branch in branches:
        if branch.answers_for(wanted):
            return branch
    branches.append(wanted)
    return wanted


def _alike(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    if a.keys() != b.keys():
        return False
    for key, value in a.items():
        other = b[key]
        if isinstance(value, Tensor) and isinstance(other, Tensor):
            if value.shape != other.shape or not torch.equal(value, other):
                return False
        elif value is not other and not (isinstance(value, (bool, int, str)) and value == other):
            return False
    return True


def match_prefixes(seen: Tensor, generated: Tensor, prompts: int) -> tuple[Tensor, int]:
    """For each row of ``generated``, the earlier row of the same prompt that it continues, and how much of it.

    Args:
        seen: ``(rows, m)`` generated tokens of the last call.
        generated: ``(rows, n)`` generated tokens now; ``n > 0``.
        prompts: number of prompts; rows of one prompt are adjacent.

    Returns:
        Parents ``(rows,)``, a row being its own where it can, and the number of tokens, less than n, that every row
        shares with its parent.
    """
    rows, length = generated.shape
    limit = min(seen.shape[1], length - 1)
    same = generated[:, None, :limit] == seen[None, :, :limit]
    common = same.long().cumprod(-1).sum(-1)
    block = torch.arange(rows, device=generated.device) // (rows // prompts)
    common = common.masked_fill(block[:, None] != block[None], -1)
    parents = (2 * common + torch.eye(rows, dtype=torch.long, device=generated.device)).argmax(-1)
    return parents, int(common.amax(-1).min())


def _croppable(cache: DynamicCache) -> bool:
    """Whether dropping the last tokens from every layer restores an earlier state exactly."""
    length = cache.get_seq_length()
    for layer in cache.layers:
        if isinstance(layer, DynamicSlidingWindowLayer):
            if layer.get_seq_length() >= layer.sliding_window:
                return False
        elif type(layer) is not GrowingLayer or layer.get_seq_length() != length:
            return False  # state-space layers, or cross-attention whose keys are the picture's
    return True


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _repeat(key: str, value: Any, times: int) -> Any:
    """Each row of a tensor ``times`` times."""
    if not isinstance(value, Tensor):
        return value
    # positions of multi-axis rotary embeddings have the batch second
    return value.repeat_interleave(times, dim=1 if key == "position_ids" and value.ndim == 3 else 0)
