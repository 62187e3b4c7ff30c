"""One pass for the model and its amateurs: their tokens meet in every decoder layer and read its weights once.

Decoding is bound by reading weights, so a few more tokens in a pass cost little and a second pass costs as much as the
first. Nothing of the model is written anew here: prompts, positions, masks and caches are each amateur's own.

How a shared pass runs. When the main pass reaches the decoder, the first amateur begins a pass of its own, whose layers only
record how they are called; at its last layer the next amateur begins, and so on. Below the last one the main pass runs, and
each of its layers works on the tokens of all, packed into one row; only attention is told apart again. How the passes lie in
that row, their positions and their masks are worked out at the first layer and kept for the others. Then the amateurs'
passes end, one after the other, each with its own hidden states.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from enum import Enum, auto
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from keepsight.engines.hf.edit_state import EditState, fused_pass_of
from keepsight.engines.hf.packing import Call, PackedPass, Unpackable, pack_calls
from keepsight.engines.hf.patching import sharing_passes, why_not_wrapped
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
    attention = target.model.config.get_text_config(decoder=True)._attn_implementation
    places = {str(place) for place in getattr(target.model, "hf_device_map", {}).values()}
    if decoder not in VERIFIED:
        return f"{decoder} is not among the decoders it was verified on"
    if attention != "sdpa":
        return f"it needs attention 'sdpa', not {attention!r}"
    if (reason := why_not_wrapped(attention)) is not None:
        return reason
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
    """Inside the block ``branch`` shares the passes of the main generation wherever that is possible.

    Raises:
        UnsupportedModel: ``target.fused`` is True, and it is not possible.
    """
    if target.fused is False:
        yield
        return
    reason = why_not_fused(target)
    if reason is None and branch.edited:
        reason = (
            "its view is edited like the main passes, and in a shared pass edits act on the main one alone"
        )
    if reason is not None or (target.fused == "auto" and why_not_worth_it(target)):
        if target.fused is True:
            raise UnsupportedModel(f"{target.name}: fused=True, but {reason}; pass fused='auto' or False")
        yield
        return
    with ExitStack() as stack:
        fused = fused_pass_of(target.model)
        if not isinstance(fused, FusedPass):
            fused = FusedPass(target)
            if not stack.enter_context(sharing_passes(target, fused)):
                yield  # another thread has this model: run apart
                return
        if branch not in fused.branches:
            fused.branches.append(branch)
            stack.callback(fused.remove, branch)
        yield


class _Phase(Enum):
    APART = auto()
    """The next pass may be the main one."""
    BRANCH_ALONE = auto()
    """An amateur, or somebody else, runs a pass that is not shared."""
    RECORDING = auto()
    """An amateur's pass: its layers record how they are called."""
    PACKED = auto()
    """The main pass: its layers work for all."""
    UNPACKING = auto()
    """The amateurs' passes end, one after the other."""


class _Abandoned(Exception):
    """Ends an amateur's pass that could not be shared to its end; the main pass has gone on without it."""


class BranchCall:
    """An amateur's pass: its hidden states now, and how it calls each layer."""

    def __init__(self, branch: Branch) -> None:
        self.branch = branch
        self.calls: list[Call] = []
        self.hidden: Tensor | None = None


class FusedPass:
    """The shared passes of one generation. ``patching.sharing_passes`` puts its wrappers in place and takes them away."""

    state: EditState
    """That of the model; set where the wrappers are put in place."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.branches: list[Branch] = []
        self._prompt = target.prompt
        self._last_layer = len(target.layers) - 1
        self._phase = _Phase.APART
        self._upcoming: Tensor | None = None
        """The main generation's tokens so far, once it has announced its next pass."""
        self._calls: list[BranchCall] = []
        self._run_next: Callable[[], None] = lambda: None
        self._plans: dict[Any, PackedPass] = {}
        """By the identity of what the passes hand to a layer: how they share it. Most layers are handed the same."""
        self._packed: tuple[Tensor, Tensor] | None = None
        """The main pass's part of what the layer before put out, and the whole of it."""
        self._head: tuple[Tensor, Tensor | None] | None = None
        """The main pass's last hidden state, and its logits once the first amateur to end has asked for its own."""
        self._reader: Branch | None = None
        self._features: dict[Branch, Any] = {}
        """What the vision tower said of the pictures of amateurs that have not begun."""
        self._thread = get_ident()
        """That of the pass that is being shared."""

    def alike(self, branch: Branch) -> Branch:
        """A branch with the same prompt that shares passes already, else ``branch`` itself."""
        return next((one for one in self.branches if one.answers_for(branch)), branch)

    def remove(self, branch: Branch) -> None:
        """Let a branch share no more passes."""
        if branch in self.branches:
            self.branches.remove(branch)

    def enter_branch(self, branch: Branch | None) -> tuple[_Phase, Branch | None]:
        """From now on passes are a branch's: they are part of a shared pass already, or run alone."""
        before = (self._phase, self._reader)
        if self._phase is _Phase.APART:
            self._phase = _Phase.BRANCH_ALONE
        self._reader = branch
        return before

    def leave_branch(self, before: tuple[_Phase, Branch | None]) -> None:
        """Undo ``enter_branch``, which returned ``before``."""
        phase, self._reader = before
        if phase is _Phase.APART:
            self._phase = phase

    def around_prepare_inputs(self, prepare: Any) -> Any:
        """Around ``prepare_inputs_for_generation``: notes which tokens the next main pass has been given so far."""

        @functools.wraps(prepare)
        def wrapper(input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._phase is _Phase.APART and self._mine():
                self._upcoming = input_ids
            return prepare(input_ids, *args, **kwargs)

        return wrapper

    def around_image_features(self, encode: Any) -> Any:
        """Around ``get_image_features``: pictures of one shape go through the vision tower together."""

        @functools.wraps(encode)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if not self._mine():
                return encode(*args, **kwargs)
            if self._phase is not _Phase.APART:
                known = None if self._reader is None else self._features.get(self._reader)
                return encode(*args, **kwargs) if known is None else known
            waiting = [branch for branch in self.branches if branch.sees and not branch.begun]
            outputs = (
                batched(encode, args, kwargs, [branch.inputs for branch in waiting]) if waiting else None
            )
            if outputs is None:
                return encode(*args, **kwargs)
            self._features = dict(zip(waiting, outputs[1:], strict=True))
            return outputs[0]

        return wrapper

    def around_decoder(self, forward: Any) -> Any:
        """Around the decoder: the main pass is shared from here on."""

        @functools.wraps(forward)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            upcoming = self._upcoming
            if self._phase is not _Phase.APART or upcoming is None or not self._mine():
                return forward(*args, **kwargs)
            self._upcoming = None
            return self._share(functools.partial(forward, *args, **kwargs), upcoming, kwargs)

        return wrapper

    def around_layer(self, index: int, forward: Any) -> Any:
        """Around a decoder layer: records how an amateur calls it, or lets it work on the tokens of all passes."""

        @functools.wraps(forward)
        def wrapper(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            phase = self._phase
            if phase is _Phase.PACKED and get_ident() == self._thread:
                return self._run_packed(index, forward, hidden, args, kwargs)
            if phase is not _Phase.RECORDING or get_ident() != self._thread:
                return forward(hidden, *args, **kwargs)
            call = self._calls[-1]
            call.calls.append((args, kwargs))
            if index == 0:
                call.hidden = hidden
            elif hidden is not call.hidden:
                # Qwen3-VL feeds the picture in between its layers: such a prompt is read apart
                raise Unpackable("the decoder changes states between its layers in this pass")
            if index == self._last_layer:
                self._run_next()
                if call.hidden is None:
                    raise _Abandoned
                return call.hidden
            return hidden

        return wrapper

    def around_head(self, forward: Any) -> Any:
        """Around the output projection: the first amateur to end takes the main pass's last state along."""

        @functools.wraps(forward)
        def wrapper(hidden: Tensor) -> Any:
            if self._head is None or not self._mine():
                return forward(hidden)
            last, ready = self._head
            if self._phase is _Phase.UNPACKING:
                if ready is not None or hidden.shape[1] != 1:
                    return forward(hidden)
                both = forward(torch.cat([last, hidden]))
                self._head = (last, both[: len(last)])
                return both[len(last) :]
            self._head = None
            # The very slice that the amateur took along, not one that merely looks like it
            same = hidden.shape == last.shape and hidden.data_ptr() == last.data_ptr()
            return ready if same and ready is not None else forward(hidden)

        return wrapper

    def _mine(self) -> bool:
        """Whether a call comes from the generation whose passes are shared, and not from another thread."""
        return get_ident() == self.state.thread

    def _share(self, main: Callable[[], Any], upcoming: Tensor, kwargs: dict[str, Any]) -> Any:
        """The main pass, with as many amateurs as are ready for the same step."""
        embeds = kwargs.get("inputs_embeds")
        length = upcoming.shape[1] - self._prompt
        if length < 0 or embeds is None or (length and embeds.shape[1] != 1):
            return main()  # a part of the prompt, or a check of drafted tokens
        generated = upcoming[:, self._prompt :]
        waiting = [branch for branch in self.branches if branch.ready(generated)]
        if not waiting:
            return main()
        state = self.state
        self._thread = state.thread
        standing = state.snapshot()
        result: list[Any] = []

        def run_next() -> None:
            if waiting:
                branch = waiting.pop(0)
                self._calls.append(BranchCall(branch))
                self._phase = _Phase.RECORDING
                branch(generated)
                return
            self._phase = _Phase.PACKED
            # The edits and the place of the main pass, whatever the amateurs' passes have put there since
            theirs = state.snapshot()
            state.restore(standing)
            try:
                result.append(main())
            finally:
                state.restore(theirs)
            hidden = result[0][0]
            self._head = (hidden[:, -1:], None)
            self._phase = _Phase.UNPACKING

        self._run_next = run_next
        try:
            run_next()
        except _Abandoned:
            self._head = None
            self._run_apart()
        except Unpackable as error:
            # An amateur could not even record its pass, and nothing has been written anywhere yet
            if self.target.fused is True and length:
                raise UnsupportedModel(self._demanded(error)) from error
            self._head = None
            self._leave()
            return main()
        finally:
            self._leave()
        return result[0]

    def _leave(self) -> None:
        self._phase = _Phase.APART
        self._calls.clear()
        for plan in self._plans.values():
            plan.release()
        self._plans, self._packed = {}, None
        self._run_next = lambda: None
        self._features = {branch: seen for branch, seen in self._features.items() if not branch.begun}

    def _run_apart(self) -> None:
        """Let the amateurs of an abandoned pass begin anew, and share no more passes: the next would fail as well."""
        for call in self._calls:
            call.branch.restart()
            self.remove(call.branch)

    def _demanded(self, error: Exception) -> str:
        return f"{self.target.name}: fused=True, but {error}; pass fused='auto' or False"

    def _run_packed(
        self, index: int, forward: Any, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A layer of the main pass, for the tokens of all passes."""
        calls = self._calls
        if calls[0].hidden is None:
            return forward(hidden, *args, **kwargs)  # abandoned in an earlier layer
        state = self.state
        # This runs in every layer at every token: it is written with loops, since each comprehension is a call of its own
        states: list[Tensor] = [hidden]
        given: list[Call] = [(args, kwargs)]
        key: Any = tuple(map(id, kwargs.values()))
        for call in calls:
            states.append(call.hidden)  # type: ignore[arg-type]
            given.append(call.calls[index])
            key = (key, *map(id, call.calls[index][1].values()))
        try:
            # Layers that are handed the same objects share one plan
            plan = self._plans.get(key)
            if plan is None:
                plan = self._plans[key] = pack_calls([(one.shape[0], one.shape[1]) for one in states], given)
            # Often nothing has touched what the layer before put out
            untouched = self._packed is not None and self._packed[0] is hidden
            together = self._packed[1] if self._packed and untouched else plan.join(states)
            state.packed = plan
            try:
                out = forward(together, **plan.arguments)
            finally:
                state.packed = None
        except Unpackable as error:
            if index == 0:
                raise  # nothing has been written anywhere yet: the whole pass can still run apart
            # The main pass must not fail because of an amateur that only should have been cheaper. Nothing of this layer
            # has been written yet; what earlier layers wrote for the amateurs is thrown away with their caches
            if self.target.fused is True:
                raise UnsupportedModel(self._demanded(error)) from error
            for call in calls:
                call.hidden = None
            return forward(hidden, *args, **kwargs)
        packed = out[0] if isinstance(out, tuple) else out
        mine, *parts = plan.split(packed)
        for call, part in zip(calls, parts, strict=True):
            call.hidden = part
        self._packed = (mine, packed)
        return (mine, *out[1:]) if isinstance(out, tuple) else mine
