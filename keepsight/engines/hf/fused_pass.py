"""One pass for the model and its second opinions: their tokens meet in every decoder layer and read its weights once.

Decoding is bound by reading weights, so a few more tokens in a pass cost little and a second pass costs as much as the
first. Nothing of the model is written anew here: prompts, positions, masks and caches are each branch's own. When the main
pass reaches the decoder, every branch starts a pass of its own, whose layers only take note of how they are called; then the
main pass runs, and each layer works on the tokens of all, packed into one row. Only attention is told apart again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from keepsight.engines.hf.beginnings import Prompt, Shared, beginning
from keepsight.engines.hf.edit_state import meeting_of, packed, resumed, spared
from keepsight.engines.hf.packing import Call, Unpackable, pack_calls
from keepsight.engines.hf.patching import OURS, meeting_in
from keepsight.engines.hf.thin import ROWS, product
from keepsight.engines.hf.vision_batching import batched
from keepsight.errors import UnsupportedModel
from keepsight.target import cache_name

if TYPE_CHECKING:
    from keepsight.engines.hf.branch import Branch
    from keepsight.target import Target

VERIFIED = frozenset(
    {
        "LlamaModel", "MistralModel", "Qwen2Model", "Qwen2VLTextModel", "Qwen2_5_VLTextModel", "Qwen3VLTextModel",
        "GemmaModel", "Gemma3TextModel",
    }
)  # fmt: skip
"""Decoders on which fused and separate branches were seen to agree."""

SMALL = 10_000_000
"""Weights in the layers. Measured per token on a CPU, M3ID over plain: at 14 million 1.3 fused and 1.8 apart if every step
asks; at 2 million 1.7 fused and 1.4 apart, since apart skips steps that are decided."""


def why_not_fused(target: Target) -> str | None:
    """Why a contrast branch of this model cannot share its passes; None if it can."""
    try:
        decoder = type(target.decoder).__name__
        cache_name(target.decoder.forward)
    except UnsupportedModel as error:
        return str(error)
    attention = target.model.config.get_text_config(decoder=True)._attn_implementation.removeprefix(OURS)
    places = {str(place) for place in getattr(target.model, "hf_device_map", {}).values()}
    if decoder not in VERIFIED:
        return f"{decoder} is not among the decoders it was verified on"
    if attention != "sdpa":
        return f"it needs attention 'sdpa', not {attention!r}"
    if hasattr(target.model.forward, "_torchdynamo_orig_callable"):
        return "its forward is compiled, and a compiled pass knows of no other"
    if target.option("use_cache") is False:
        return "without a cache every pass is over the whole text"
    if len(places) > 1:
        return f"the model is spread over {', '.join(sorted(places))}"
    if getattr(getattr(target.model.config, "quantization_config", None), "load_in_8bit", False):
        return "LLM.int8() rounds a token after what stands beside it in a pass"
    return None


def why_not_worth_it(target: Target) -> str | None:
    """Why a branch that could share passes is faster apart; None where it is not."""
    weights = sum(parameter.numel() for parameter in target.layers[0].parameters()) * len(target.layers)
    if weights < SMALL:
        return f"with {weights:,} weights in its layers, the bookkeeping of shared passes costs more than they save"
    return None


@contextmanager
def fusing(target: Target, branch: Branch) -> Iterator[None]:
    """Inside the block ``branch`` rides along in the passes of the main generation wherever that is possible.

    Raises:
        UnsupportedModel: ``target.fused`` is True, and it is not possible.
    """
    if target.fused is False:
        yield
        return
    reason = why_not_fused(target)
    if reason is not None or (target.fused == "auto" and why_not_worth_it(target)):
        if target.fused is True:
            raise UnsupportedModel(f"{target.name}: fused=True, but {reason}; pass fused='auto' or False")
        yield
        return
    with ExitStack() as stack:
        meeting = meeting_of(target.model)
        if meeting is None:
            meeting = Meeting(target)
            if not stack.enter_context(meeting_in(target, meeting)):
                yield  # another thread holds this model: run apart
                return
        if branch not in meeting.branches:
            meeting.branches.append(branch)
            stack.callback(meeting.branches.remove, branch)
        yield


class _State(Enum):
    APART = auto()
    """The next pass may be the main one."""
    AWAY = auto()
    """A branch runs on its own."""
    GATHERING = auto()
    """A branch's pass: its layers take note."""
    PACKED = auto()
    """The main pass: its layers work for all."""
    LEAVING = auto()
    """The branches' passes end, one after the other."""


@dataclass(eq=False)
class _Guest:
    """A branch's pass: its hidden states now, how it calls each layer, and what of its prompt the main pass reads for it."""

    branch: Branch
    calls: dict[int, Call] = field(default_factory=dict)
    hidden: Tensor | None = None
    shared: Shared | None = None


class Meeting:
    """Where passes meet, for one generation. ``attach.meeting_in`` puts its wrappers in place and takes them away."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.branches: list[Branch] = []
        self._thread = get_ident()
        self._last_layer = len(target.layers) - 1
        self._state = _State.APART
        self._upcoming: Tensor | None = None
        self._guests: list[_Guest] = []
        self._descend: Callable[[], None] = lambda: None
        self._packed: tuple[Tensor, Tensor] | None = None
        self._whole = False
        self._known: dict[Any, Any] = {}
        self._head: tuple[Tensor, Tensor | None] | None = None
        self._reader: Branch | None = None
        self._seen: dict[Branch, Any] = {}
        """What the vision tower said of the pictures of branches that have not begun."""

    def alike(self, branch: Branch) -> Branch:
        """A branch with the same prompt that rides along already, else ``branch`` itself."""
        return next((one for one in self.branches if one.answers_for(branch)), branch)

    def listening(self, prepare: Any) -> Any:
        """Around ``prepare_inputs_for_generation``: what the next main pass has been given so far."""

        @functools.wraps(prepare)
        def wrapper(input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._state is _State.APART and self._mine():
                self._upcoming = input_ids
            return prepare(input_ids, *args, **kwargs)

        return wrapper

    def at_tower(self, encode: Any) -> Any:
        """Around ``get_image_features``: pictures of one shape are looked at together."""

        @functools.wraps(encode)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if not self._mine():
                return encode(*args, **kwargs)
            if self._reader is not None:
                seen = self._seen.get(self._reader)
                return encode(*args, **kwargs) if seen is None else seen
            waiting = [branch for branch in self.branches if branch.sees and not branch.begun]
            outputs = (
                batched(encode, args, kwargs, [branch.inputs for branch in waiting]) if waiting else None
            )
            if outputs is None:
                return encode(*args, **kwargs)
            self._seen = dict(zip(waiting, outputs[1:], strict=True))
            return outputs[0]

        return wrapper

    def at_decoder(self, forward: Any) -> Any:
        @functools.wraps(forward)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if self._state is not _State.APART or not self._mine() or self._upcoming is None:
                return forward(*args, **kwargs)
            upcoming, self._upcoming = self._upcoming, None
            return self._meet(functools.partial(forward, *args, **kwargs), upcoming, kwargs)

        return wrapper

    def at_layer(self, index: int, forward: Any) -> Any:
        @functools.wraps(forward)
        def wrapper(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not self._mine() or self._state not in (_State.GATHERING, _State.PACKED):
                return forward(hidden, *args, **kwargs)
            if self._state is _State.GATHERING:
                return self._note(index, hidden, args, kwargs)
            return self._work(index, forward, hidden, args, kwargs)

        return wrapper

    def at_head(self, forward: Any) -> Any:
        """Around the output projection: the first branch to leave takes the main pass's last state along."""

        @functools.wraps(forward)
        def wrapper(hidden: Tensor) -> Any:
            if self._head is None or not self._mine():
                return forward(hidden)
            last, ready = self._head
            if self._state is _State.LEAVING:
                if ready is not None or hidden.shape[1] != 1:
                    return forward(hidden)
                both = forward(torch.cat([last, hidden]))
                self._head = (last, both[: len(last)])
                return both[len(last) :]
            self._head = None
            # The very slice that the branch took along, not one that merely looks like it
            same = hidden.shape == last.shape and hidden.data_ptr() == last.data_ptr()
            return ready if same and ready is not None else forward(hidden)

        return wrapper

    def at_product(self, part: Any, forward: Any) -> Any:
        """Around a matrix of the decoder, where products of few rows are slow."""

        @functools.wraps(forward)
        def wrapper(input: Tensor) -> Any:  # as torch calls it
            shared = self._state in (_State.PACKED, _State.LEAVING) and self._mine()
            if shared and input.shape[:-1].numel() in ROWS and input.dtype == part.weight.dtype:
                return product(input, part.weight, part.bias)
            return forward(input)

        return wrapper

    @contextmanager
    def elsewhere(self, reader: Branch) -> Iterator[None]:
        """Inside the block passes are a branch's: they have met the main one, or go their own way."""
        state, before = self._state, self._reader
        if state is _State.APART:
            self._state = _State.AWAY
        self._reader = reader
        try:
            yield
        finally:
            self._reader = before
            if state is _State.APART:
                self._state = state

    def _mine(self) -> bool:
        return get_ident() == self._thread

    def _meet(self, main: Callable[[], Any], upcoming: Tensor, kwargs: dict[str, Any]) -> Any:
        from keepsight.engines.hf.assisted_decoding import drafting

        embeds = kwargs.get("inputs_embeds")
        length = upcoming.shape[1] - self.target.prompt
        if length < 0 or embeds is None or (length and embeds.shape[1] != 1) or drafting():
            return main()  # a part of the prompt, or a check of drafted tokens
        generated = upcoming[:, self.target.prompt :]
        branches = [branch for branch in self.branches if branch.ready(generated)]
        if not branches:
            return main()
        resume = resumed(self.target.model)
        waiting = list(branches)
        result: list[Any] = []
        self._whole = length == 0 and embeds.shape[1] == self.target.prompt

        def descend() -> None:
            if waiting:
                self._guests.append(_Guest(waiting[0]))
                self._state = _State.GATHERING
                waiting.pop(0)(generated)
                return
            self._state = _State.PACKED
            with resume():
                result.append(main())
            hidden = result[0][0]
            self._head = (hidden[:, -1:], None)
            self._state = _State.LEAVING

        self._descend = descend
        try:
            descend()
        except Unpackable as error:
            # Nothing has been written anywhere yet: this pass can still be the main generation's alone
            if self.target.fused is True and length:
                raise UnsupportedModel(
                    f"{self.target.name}: fused=True, but {error}; pass fused='auto' or False"
                ) from error
            self._head = None
            self._leave()
            return main()
        finally:
            self._leave()
        return result[0]

    def _leave(self) -> None:
        self._state, self._guests, self._packed, self._known = _State.APART, [], None, {}
        self._descend = lambda: None
        self._seen = {branch: seen for branch, seen in self._seen.items() if not branch.begun}

    def _note(self, index: int, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        guest = self._guests[-1]
        guest.calls[index] = (args, kwargs)
        if index == 0:
            guest.hidden = hidden
        elif hidden is not guest.hidden:
            raise Unpackable("the decoder changes states between its layers in this pass")
        if index == self._last_layer:
            self._descend()
            assert guest.hidden is not None
            return guest.hidden
        return hidden

    def _work(
        self, index: int, forward: Any, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        calls = [(args, kwargs), *(guest.calls[index] for guest in self._guests)]
        if index == 0 and self._whole:
            self._share(hidden, calls)
        states: list[Tensor] = [hidden]
        states += [guest.hidden for guest in self._guests if guest.hidden is not None]
        left_out = (None, *(guest.shared for guest in self._guests)) if self._whole else ()
        try:
            self._check_beginnings(kwargs.get("attention_mask"))
            shared, layout = pack_calls(states, calls, self._known, left_out)
        except Unpackable as error:
            if index == 0:
                raise
            raise UnsupportedModel(
                f"{self.target.name}: layer {index} cannot be shared ({error}): pass fused=False"
            ) from error
        # Often nothing has touched what the layer before put out
        untouched = self._packed is not None and self._packed[0] is hidden
        together = self._packed[1] if self._packed and untouched else layout.pack.join(states)
        with packed(self.target.model, layout):
            out = forward(together, **shared)
        if not isinstance(out, Tensor):
            raise UnsupportedModel(
                f"{self.target.name}: a decoder layer puts out a {type(out).__name__}: pass fused=False"
            )
        mine, *theirs = layout.pack.split(out)
        for guest, part in zip(self._guests, theirs, strict=True):
            guest.hidden = part
        self._packed = (mine, out)
        return mine

    def _check_beginnings(self, mask: Tensor | None) -> None:
        """Raises ``Unpackable`` where a layer lets the shared text look ahead that the first layer did not."""
        key = ("looks back", id(mask))
        if key not in self._known:
            found = [guest.shared for guest in self._guests if guest.shared is not None]
            self._known[key] = (all(one.looks_back(mask) for one in found), mask)
        if not self._known[key][0]:
            raise Unpackable("the text before the picture looks ahead in it")

    def _share(self, hidden: Tensor, calls: list[Call]) -> None:
        """Leave out of each branch's prompt what the main pass reads as well: the text before the picture, as a rule."""
        for guest, call in zip(self._guests, calls[1:], strict=True):
            assert guest.hidden is not None
            own = guest.branch.inputs["attention_mask"]
            found = beginning(
                Prompt(hidden, self.target.attention_mask, calls[0][1]), Prompt(guest.hidden, own, call[1])
            )
            if found is None or not spared(self.target.model, found.rows, found.columns):
                continue
            if not found.looks_back(calls[0][1].get("attention_mask")):
                continue
            own_places = torch.arange(found.tokens, device=hidden.device).expand(len(found.rows), -1)
            own_rows = torch.arange(len(found.rows), device=hidden.device)
            theirs = Shared(own_rows, own_places.where(own[:, : found.tokens].to(hidden.device) != 0, -1))
            masks = {
                id(mask): mask
                for _, given in guest.calls.values()
                if (mask := given.get("attention_mask")) is not None
            }
            if all(theirs.looks_back(mask) for mask in masks.values()):
                guest.shared, guest.hidden = found, guest.hidden[:, found.tokens :]
