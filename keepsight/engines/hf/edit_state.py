"""What the edits inside a model need to know while it generates: which edits there are, and where the current pass stands.

The state of a model lives in a table beside it and not on its modules. ``patching`` opens it and puts the hooks in place
that ask it; this file holds it, and changes it for a while, for passes in which other edits act than in the main ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import RLock, get_ident
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary, ref

from keepsight.errors import ConcurrentUse, InputError, ProcessorReused, UnsupportedModel
from keepsight.parts import PLACES, HookContext

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from keepsight.engines.hf.packing import PackedPass
    from keepsight.parts import Edit
    from keepsight.target import Target

Hook = tuple["Edit", Callable[..., Any]]
"""An edit, and its method for one place."""

ATTENTION_PLACES = ("attn_scores", "attn_pattern", "head_out")
"""Places inside the attention function itself."""

_SAVED = (
    "edits", "hooks", "attention_layers", "unchecked", "prompt", "image", "attention_mask", "masks", "first", "rows",
    "batch", "known", "foreign", "cache", "announced", "announces", "single",
)  # fmt: skip
"""What a pass with another prompt or other edits would change."""


class SharedPasses(Protocol):
    """What this file and ``patching`` need to know of passes that a model shares with its amateurs (``fused_pass``)."""

    state: EditState

    def enter_branch(self, branch: Any) -> Any:
        """From now on passes are a branch's; returns what ``leave_branch`` takes."""

    def leave_branch(self, before: Any) -> None:
        """Undo ``enter_branch``."""

    def alike(self, branch: Any) -> Any:
        """A branch with the same prompt that shares passes already, else ``branch`` itself."""

    def around_prepare_inputs(self, prepare: Any) -> Any:
        """A wrapper around ``prepare_inputs_for_generation``."""

    def around_decoder(self, forward: Any) -> Any:
        """A wrapper around the decoder."""

    def around_layer(self, index: int, forward: Any) -> Any:
        """A wrapper around a decoder layer."""

    def around_head(self, forward: Any) -> Any:
        """A wrapper around the output projection."""

    def around_image_features(self, encode: Any) -> Any:
        """A wrapper around ``get_image_features``."""


class EditState:
    """The edits inside one model, and where its current forward pass stands.

    What is the same in every layer of a pass is worked out once per pass, on the CPU where that saves a wait for the GPU.
    """

    def __init__(self, target: Target) -> None:
        self.name = target.name
        self.prompt = target.prompt
        self.width = target.hidden_size
        self.input_ids = target.input_ids
        self.image = target.image_mask
        self.attention_mask = target.attention_mask.to(self.image.device) != 0
        self.edits: tuple[Edit, ...] = ()
        self.hooks: dict[str, dict[int, list[Hook]]] = {place: {} for place in PLACES}
        self.attention_layers: frozenset[int] = frozenset()
        """Layers in which an edit acts inside the attention function."""
        self.unchecked: set[tuple[str, int]] = set()
        """Places and layers of the edits that no pass has reached yet."""
        self.first = self.rows = self.batch = 0
        self.known: dict[Any, Any] = {}
        self.masks: dict[Any, tuple[Tensor, Tensor]] = {}
        self.places: set[str] = set()
        """What hooks stand in the model, whoever asked for them."""
        self.thread = get_ident()
        """The thread whose passes are edited: the one that opened the block, or that it lets generate."""
        self.serving = False
        """Whether a call of ``generate`` is being served."""
        self.announced = False
        """Whether ``prepare_inputs_for_generation`` was called for the pass that comes next."""
        self.announces = False
        """Whether the generation being served announces its passes; searches of users' own need not."""
        self.foreign = False
        """Whether the current pass belongs to somebody else, such as transformers' classifier-free guidance."""
        self.cache: ref[Any] | None = None
        """The cache of the last pass that was the generation's own."""
        self.preparing = False
        """Whether a prelude is running, so that a ``generate`` of this thread is not the generation itself."""
        self.single = False
        """Whether the methods in place serve one generation only."""
        self.generated = False
        """Whether a generation has begun."""
        self.fused: SharedPasses | None = None
        self.packed: PackedPass | None = None

    def use(self, edits: Sequence[Edit]) -> None:
        """Let these edits act from now on: what each layer has to call is looked up here once and not at every token."""
        self.edits = tuple(edits)
        self.hooks = {place: {} for place in PLACES}
        self.unchecked = set()
        for edit in edits:
            for place in PLACES:
                if not edit.overrides(place):
                    continue
                for layer in edit.layers:
                    self.hooks[place].setdefault(layer, []).append((edit, getattr(edit, place)))
                    self.unchecked.add((place, layer))
        self.attention_layers = frozenset().union(*[self.hooks[place] for place in ATTENTION_PLACES])

    def announce(self, input_ids: Tensor) -> None:
        """Before the inputs of a pass are prepared: ``generate`` is about to run one over these tokens.

        Raises:
            ProcessorReused: the generation has another prompt than the one that the methods were put in place for.
        """
        self.announced = self.announces = True
        if not self.single or self.generated or not self.serving:
            return
        # Prompts may come as many times as the search has rows, and in chunks
        length = min(input_ids.shape[1], self.prompt)
        expected = self.input_ids[:, :length].to(input_ids.device)
        expected = expected.repeat_interleave(max(input_ids.shape[0] // len(expected), 1), dim=0)
        if expected.shape[0] != input_ids.shape[0] or not bool((input_ids[:, :length] == expected).all()):
            raise ProcessorReused(
                f"this block was opened for a prompt of shape {tuple(self.input_ids.shape)} and met another one of shape"
                f" {tuple(input_ids.shape)}: open it with the very inputs that go to generate()"
            )

    def begin(
        self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before the decoder runs: how much of the text it has seen, and how much is new.

        Returns what the decoder is called with instead, where it would leave tokens out of some of its layers.
        """
        from keepsight.target import cache_among

        # PyTorch calls a hook that is removed during its pass without the keyword arguments; such a pass is another thread's
        if get_ident() != self.thread or kwargs is None:
            return None
        past = cache_among(kwargs)
        # A logits processor such as transformers' guidance calls the model on another prompt in between. Its passes are not
        # announced by ``prepare_inputs_for_generation``, and what edits the main passes must not touch them. A search of a
        # user's own may announce its first pass alone: its later passes are known by their cache
        continues = past is not None and self.cache is not None and self.cache() is past
        self.foreign = self.serving and self.announces and not self.announced and not continues
        self.announced = False
        if self.foreign:
            return None
        tokens: Any = kwargs.get("inputs_embeds")
        if tokens is None:
            tokens = kwargs.get("input_ids", args[0] if args else None)
        self.generated |= self.serving
        self._keep_cache(past)
        self.first = 0 if past is None else int(past.get_seq_length())
        self.batch, self.rows = tokens.shape[:2]
        self.known = {}
        # Gemma 4 computes only the tokens whose logits are asked for in the layers that borrow keys from earlier ones.
        # Edits act on all tokens of the prompt, so they ask for all: 0 means that here, and the model itself picks the last
        if self.edits and kwargs.get("logits_to_keep") and self.rows > 1:
            return args, {**kwargs, "logits_to_keep": 0}
        return None

    def _keep_cache(self, cache: Any) -> None:
        try:
            self.cache = None if cache is None else ref(cache)
        except TypeError:  # no object of transformers, and nothing to know a pass by
            self.cache = None

    def end(self, _module: Any, _args: Any, output: Any) -> None:
        """After the decoder has run: the first pass must have reached every edit in every layer."""
        from keepsight.target import cache_among

        if get_ident() != self.thread:
            return
        if self.foreign:
            # A pass that follows within the same step is judged anew
            self.foreign = False
            return
        if self.cache is None and isinstance(output, Mapping):
            self._keep_cache(cache_among(output))  # one that the decoder has made itself
        if self.unchecked and self.first + self.rows >= self.prompt:
            place, layer = min(self.unchecked)
            raise UnsupportedModel(
                f"{self.name}: decoder layer {layer} did not call {place}, so that a method would have changed nothing"
                " there: its attention does not go through transformers' attention interface, or the layer was skipped"
            )

    def at(self, place: str, layer: int) -> Sequence[Hook]:
        """What has to be called at a place of a layer in the current pass."""
        # Passes of another thread over the same model are not this generation's
        if self.foreign or get_ident() != self.thread:
            return ()
        found = self.hooks[place].get(layer, ())
        if found and self.unchecked:
            self.unchecked.discard((place, layer))
        return found

    def check_states(self, states: Tensor, place: str, layer: int) -> None:
        """Whether the states at a place are one for each token of the pass, of the width of the residual stream.

        Raises:
            UnsupportedModel: they are not. Decoders with several residual streams have more or wider ones; others leave
                tokens out of a layer.
        """
        tokens, mine = states.numel() // max(states.shape[-1], 1), self.batch * self.rows
        # In a shared pass the amateurs' tokens come after the main pass's own
        if (tokens == mine or (self.packed is not None and tokens > mine)) and states.shape[-1] == self.width:
            return
        raise UnsupportedModel(
            f"{self.name}: layer {layer} has {tokens} states of width {states.shape[-1]} for the {mine} tokens of a pass,"
            f" and not one of width {self.width} for each: its {place} cannot be edited"
        )

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """``make()`` at its first use in a pass, the same thing afterwards."""
        if key not in self.known:
            self.known[key] = make()
        return self.known[key]

    def context(self, layer: int, device: Any) -> HookContext:
        """Where the current pass stands, for the edits of one layer."""
        key = (device, self.batch)
        if key not in self.masks:  # kept from pass to pass: asking a GPU for it would wait for the GPU
            each = self.batch // self.image.shape[0]
            self.masks[key] = (
                self.image.to(device).repeat_interleave(each, dim=0),
                self.attention_mask.to(device).repeat_interleave(each, dim=0),
            )
        image, mask = self.masks[key]
        return HookContext(layer, self.first, self.rows, self.prompt, image, mask)

    def snapshot(self) -> tuple[Any, ...]:
        """What ``restore`` takes to go back to this moment."""
        return tuple([getattr(self, name) for name in _SAVED])

    def restore(self, values: tuple[Any, ...]) -> None:
        """Be again as ``snapshot`` found it."""
        self.__dict__.update(zip(_SAVED, values, strict=True))


_IN_USE = (
    "another thread is generating with edits on this model: one generation at a time, or one on"
    " keepsight.engines.hf.weight_sharing.twin(model), which has the same weights"
)
_LOCK = RLock()
"""Held where it is decided whose a model is."""
_BUSY: list[int] = []
"""Threads that are putting methods in place, or that will generate themselves with what they have put in place. No other
thread may take over what they have opened."""

STATES: WeakKeyDictionary[Any, EditState] = WeakKeyDictionary()
"""The state of each model in which something is in place."""
LAYERS: dict[int, tuple[EditState, int]] = {}
"""The state, and the number of the decoder layer, by the ``id`` of each module of such a model's decoder layers.

A dictionary of ids, since it is asked in every layer at every token; the modules live at least as long as the block."""


@contextmanager
def registered(model: PreTrainedModel, state: EditState) -> Iterator[None]:
    """Inside the block ``state`` is that of ``model``.

    Raises:
        ConcurrentUse: another thread was faster.
    """
    with _LOCK:
        if model in STATES:
            raise ConcurrentUse(_IN_USE)
        STATES[model] = state
    try:
        yield
    finally:
        del STATES[model]


@contextmanager
def registered_layers(target: Target, state: EditState) -> Iterator[None]:
    """Inside the block attention functions find ``state`` by the module that calls them, whatever kind it is."""
    found = {id(module): (state, i) for i, layer in enumerate(target.layers) for module in layer.modules()}
    try:
        LAYERS.update(found)
        yield
    finally:
        for key in found:
            del LAYERS[key]


@contextmanager
def isolated_edits(
    model: PreTrainedModel,
    *edits: Edit,
    prompt: int = 0,
    image: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Iterator[None]:
    """Inside the block only ``edits`` act on the model, for other prompts than the main ones; none: it runs unedited."""
    state = STATES.get(model)
    if state is None or state.thread != get_ident():
        # The passes of this thread are not edited, and the state of another thread's must stay as it is
        if edits:
            raise InputError("edits can only act alone within editing()")
        yield
        return
    before = state.snapshot()
    try:
        state.use(edits)
        # An observer need not be reached: cross-attention layers are passed over where a prompt has no picture
        state.unchecked = set()
        state.single = False
        state.prompt = prompt
        if image is not None:
            state.image = image
            state.attention_mask = (
                image.new_ones(image.shape)
                if attention_mask is None
                else attention_mask.to(image.device) != 0
            )
            state.masks = {}
        yield
    finally:
        state.restore(before)


def check_free(model: PreTrainedModel, *, for_edits: bool = False) -> None:
    """Raises ``ConcurrentUse`` where another thread generates with edits on this very model.

    Args:
        for_edits: whether edits are to come, which share a model with no other thread's shared passes either.
    """
    state = STATES.get(model)
    if state is not None and state.thread != get_ident() and (state.edits or for_edits):
        raise ConcurrentUse(_IN_USE)


def fused_pass_of(model: PreTrainedModel) -> SharedPasses | None:
    """The shared passes over the model, if they are this thread's."""
    state = STATES.get(model)
    return state.fused if state is not None and state.thread == get_ident() else None


@contextmanager
def branch_forward(model: PreTrainedModel, branch: Any) -> Iterator[None]:
    """Inside the block passes over the model are those of ``branch``, or of nobody who shares passes if it is None."""
    fused = fused_pass_of(model)
    if fused is None:
        yield
        return
    before = fused.enter_branch(branch)
    try:
        yield
    finally:
        fused.leave_branch(before)


@contextmanager
def busy() -> Iterator[None]:
    """Inside the block no other thread may generate with what this thread puts in place."""
    _BUSY.append(get_ident())
    try:
        yield
    finally:
        _BUSY.remove(get_ident())


@contextmanager
def one_generation(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block one generation is served: the edits in place hold what they have seen of its prompt."""
    state = STATES[model]
    single, state.single = state.single, True
    if not single:
        state.generated = False
    try:
        yield
    finally:
        # Methods of a block around this one have served the same generation
        state.single = single


@contextmanager
def preparing(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block a ``generate`` of this thread is a prelude's and runs unedited."""
    state = STATES.get(model)
    if state is None or state.thread != get_ident():
        yield
        return
    before, state.preparing = state.preparing, True
    try:
        yield
    finally:
        state.preparing = before


@contextmanager
def serving(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block a call of ``generate`` is served, in whatever thread. One within another runs unedited: it is a draft
    of assisted decoding, or somebody's callback.

    Args:
        model: the model that generates.

    Raises:
        ConcurrentUse: another thread's call is being served, or prepared, under edits.
        ProcessorReused: the methods in place have served a generation already.
    """
    state = STATES.get(model)
    if state is None:
        yield
        return
    thread = get_ident()
    with _LOCK:
        mine = state.thread == thread
        # Streaming code lets another thread generate than the one that opened the block
        starts = not (state.serving or state.preparing) and (mine or state.thread not in _BUSY)
        if starts:
            if state.single and state.generated:
                raise ProcessorReused(
                    "the methods of this attached(…) block have served a generation already: open a block for each"
                    " generate(), or use `with mitigate(model, METHOD)`"
                )
            before, state.thread = state.thread, thread
            state.serving, state.announces, state.announced = True, False, False
    if starts:
        try:
            yield
        finally:
            state.serving, state.thread = False, before
    elif mine:
        with isolated_edits(model), branch_forward(model, None):
            yield
    else:
        check_free(model)
        yield
