"""The one file that changes a model. Whatever it changes it puts back, also after an error."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Lock, get_ident
from types import MethodType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from keepsight.engines.hf.edit_state import (
    ATTENTION_PLACES,
    STATES,
    EditState,
    SharedPasses,
    check_free,
    registered,
    registered_layers,
    serving,
)
from keepsight.errors import ConcurrentUse, CopiedInBlock, InputError, UnsupportedModel
from keepsight.parts import PLACES

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from keepsight.parts import Edit
    from keepsight.target import Target


@dataclass(eq=False)
class _Replacement:
    """What an attribute of an instance was before it was replaced."""

    had: bool
    before: Any


_REPLACING = Lock()
_REPLACED: dict[tuple[int, str], list[_Replacement]] = {}
"""The replacements that are in place, outer ones first, by the ``id`` of the owner and the attribute's name."""


@contextmanager
def replaced(
    owner: Any, name: str, value: Any = None, *, around: Callable[[Any], Any] | None = None
) -> Iterator[None]:
    """Set an instance attribute inside the block; afterwards it is what it was, or absent if it was.

    Blocks of several threads need not nest: where one ends within another, the other takes over what it found.

    Args:
        value: what the attribute is set to.
        around: makes it from what the attribute is at that moment, instead.
    """
    with _REPLACING:
        mine = _Replacement(name in vars(owner), vars(owner).get(name))
        stack = _REPLACED.setdefault((id(owner), name), [])
        stack.append(mine)
        setattr(owner, name, value if around is None else around(getattr(owner, name)))
    try:
        yield
    finally:
        with _REPLACING:
            index = stack.index(mine)
            del stack[index]
            if index < len(stack):
                stack[index].had, stack[index].before = mine.had, mine.before
            elif mine.had:
                setattr(owner, name, mine.before)
            else:
                delattr(owner, name)
            if not stack:
                del _REPLACED[id(owner), name]


class _NoCopy:
    """Stands in a model's attributes while hooks are in place, and refuses to be copied with them.

    A copy would keep the hooks for ever, and they would act on it with the state of the original.
    """

    def __deepcopy__(self, memo: Any) -> Any:
        raise CopiedInBlock(
            "a model cannot be copied while a method is in place in it: copy it before the block is opened, or take"
            " keepsight.engines.hf.weight_sharing.twin(model), which shares its weights"
        )


Handler = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Takes a call of ``generate``: the model's own, and the arguments."""


class GenerateWrapper:
    """Stands in for ``model.generate`` while a block is open on the model or edits are in place in it.

    There is one for all blocks and threads of a model. Wrappers around wrappers would have to be taken off in the order in
    which they were put on, which blocks of several threads do not keep to.
    """

    def __init__(self, model: Any) -> None:
        self._model, self._generate = model, model.generate
        self.handler: Handler | None = None
        self.users = 0
        self.open = ExitStack()
        functools.update_wrapper(self, model.generate)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.handler is not None:
            return self.handler(self._generate, args, kwargs)
        with serving(self._model):
            return self._generate(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # A copy of the model gets its own generate back: no block is open on it
        copied = memo.get(id(self._model))
        return self if copied is None else MethodType(type(copied).generate, copied)


class _Refused:
    """Stands in for a method of the model that would generate past the methods in place."""

    def __init__(self, model: Any, name: str) -> None:
        self._model, self._name = model, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise InputError(
            f"{self._name} batches requests by itself and takes no notice of methods in place: call it outside the block, or"
            " generate()"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self._model))
        return self if copied is None else MethodType(getattr(type(copied), self._name), copied)


_WRAPPING = Lock()
_WRAPPERS: WeakKeyDictionary[Any, GenerateWrapper] = WeakKeyDictionary()


@contextmanager
def wrapping_generate(model: Any, handler: Handler | None = None) -> Iterator[None]:
    """Inside the block calls of ``model.generate`` are noticed, and go to ``handler`` if there is one.

    Args:
        handler: of the calls; only one of the blocks that are open at a time may have one.
    """
    with _WRAPPING:
        wrapper = _WRAPPERS.get(model)
        if wrapper is None:
            wrapper = _WRAPPERS[model] = GenerateWrapper(model)
            wrapper.open.enter_context(replaced(model, "generate", wrapper))
            for name in ("generate_batch", "init_continuous_batching"):
                if hasattr(model, name):
                    wrapper.open.enter_context(replaced(model, name, _Refused(model, name)))
        wrapper.users += 1
        if handler is not None:
            wrapper.handler = handler
    try:
        yield
    finally:
        with _WRAPPING:
            wrapper.users -= 1
            if handler is not None:
                wrapper.handler = None
            if not wrapper.users:
                del _WRAPPERS[model]
                wrapper.open.close()


@contextmanager
def preserving_rope_deltas(model: PreTrainedModel) -> Iterator[None]:
    """Qwen-VL models keep the position offset of the last prompt they saw; a second prompt must not overwrite it."""
    owners = [module for module in (model, *model.children()) if "rope_deltas" in vars(module)]
    before = [module.rope_deltas for module in owners]
    try:
        yield
    finally:
        for module, value in zip(owners, before, strict=True):
            module.rope_deltas = value


def _text_part(model: Any, name: str) -> str:
    """Under which name a configuration holds that of its text decoder.

    Raises:
        UnsupportedModel: it does not.
    """
    config = model.config.get_text_config(decoder=True)
    part = next((key for key in model.config.sub_configs if getattr(model.config, key, None) is config), None)
    if part is None:
        raise UnsupportedModel(f"{name}: its text configuration is not a part of its configuration")
    return str(part)


@contextmanager
def text_attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Inside the block the decoder's attention is transformers' ``name``; the vision tower keeps its own.

    Raises:
        UnsupportedModel: its text configuration is not a part of its configuration.
    """
    part = _text_part(model, type(model).__name__)
    before = getattr(model.config, part)._attn_implementation
    model.set_attn_implementation({part: name})
    try:
        yield
    finally:
        model.set_attn_implementation({part: before})


@contextmanager
def editing(target: Target, *edits: Edit) -> Iterator[None]:
    """Edits in place inside the block. Blocks nest: edits of one place act in the order in which they were entered.

    Raises:
        UnsupportedModel: a layer has no place for an edit, or the model's attention cannot be replaced at run time. From the
            first pass over the prompt: an edit was not reached.
        ConcurrentUse: another thread is generating with edits on this very model.
    """
    model = target.model
    if (compiled := target.compiled_module) is not None:
        # A compiled pass skips hooks that were not there when it was compiled, and says nothing
        raise UnsupportedModel(
            f"{target.name}: {compiled} is compiled, and a compiled pass leaves out what acts inside the model: load the"
            " model anew without compile()"
        )
    check_free(model, for_edits=True)
    with ExitStack() as stack:
        state = STATES.get(model)
        if state is None:
            state = stack.enter_context(_opened(target))
        before = state.edits
        stack.callback(lambda: state.use(before))
        stack.enter_context(_places(target, state, edits))
        state.use([*before, *edits])
        yield


@contextmanager
def sharing_passes(target: Target, fused: SharedPasses) -> Iterator[bool]:
    """Passes over the model are shared inside the block; yields False, and does nothing, if another thread has the model."""
    model: Any = target.model
    with ExitStack() as stack:
        state = STATES.get(model)
        if state is None:
            try:
                state = stack.enter_context(_opened(target))
            except ConcurrentUse:  # another thread was faster
                yield False
                return
        elif state.thread != get_ident():
            yield False
            return
        stack.enter_context(_places(target, state, (), also=("attention",)))
        places: list[tuple[Any, str, Callable[[Any], Any]]] = [
            (model, "prepare_inputs_for_generation", fused.around_prepare_inputs),
            (target.decoder, "forward", fused.around_decoder),
            (target.head, "forward", fused.around_head),
            *(
                (layer, "forward", functools.partial(fused.around_layer, i))
                for i, layer in enumerate(target.layers)
            ),
        ]
        tower = getattr(model, "model", None)
        if hasattr(tower, "get_image_features"):
            places.append((tower, "get_image_features", fused.around_image_features))
        for owner, name, around in places:
            stack.enter_context(replaced(owner, name, around=around))
        stack.callback(setattr, state, "fused", None)
        state.fused, fused.state = fused, state
        yield True


@contextmanager
def _opened(target: Target) -> Iterator[EditState]:
    """A state for a model that has none, and what it needs to know where the current pass stands."""
    from keepsight.target import cache_name

    model: Any = target.model
    cache_name(target.decoder.forward)  # a cache by a name unknown would be taken for none at all
    state = EditState(target)

    def announcing(prepare: Any) -> Any:
        @functools.wraps(prepare)
        def wrapper(input_ids: Any, *args: Any, **kwargs: Any) -> Any:
            if state.thread == get_ident():
                state.announce(input_ids)
            return prepare(input_ids, *args, **kwargs)

        return wrapper

    with ExitStack() as stack:
        # First of all: another thread that comes to this model meanwhile must find it taken
        stack.enter_context(registered(target.model, state))
        stack.enter_context(replaced(model, "_keepsight_in_place", _NoCopy()))
        stack.callback(target.decoder.register_forward_pre_hook(state.begin, with_kwargs=True).remove)
        stack.callback(target.decoder.register_forward_hook(state.end).remove)
        name = "prepare_inputs_for_generation"
        stack.enter_context(replaced(model, name, around=announcing))
        stack.enter_context(wrapping_generate(model))
        yield state


@contextmanager
def _places(
    target: Target, state: EditState, edits: Sequence[Edit], *, also: Sequence[str] = ()
) -> Iterator[None]:
    """Whatever these edits need and no enclosing block has put in place yet."""
    with ExitStack() as stack:
        wanted = {place for place in PLACES for edit in edits if edit.overrides(place)}
        wanted = {"attention" if place in ATTENTION_PLACES else place for place in wanted} | set(also)
        for place in sorted(wanted - state.places):
            stack.callback(state.places.discard, place)
            state.places.add(place)
            if place == "attention":
                stack.enter_context(_attention_replaced(target, state))
                continue
            layers = {layer for edit in edits if edit.overrides(place) for layer in edit.layers}
            for index, layer in enumerate(target.layers):
                needed = index in layers
                if (handle := _hook(place, index, layer, state, needed=needed)) is not None:
                    stack.callback(handle.remove)
        yield


_MODULES = {
    "attn_out": ("self_attn", "attention", "attn", "cross_attn", "self_attention"),
    "mlp_out": ("mlp", "feed_forward"),
}
"""Under which names decoder layers hold their attention block and their MLP."""


def _hook(place: str, index: int, layer: Any, state: EditState, *, needed: bool) -> Any:
    """Registers the hook of one place in one layer; None where the layer has no such module and none is needed."""
    if place == "resid_pre":

        def read(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
            if kwargs is not None and (hooks := state.at(place, index)):
                hidden = args[0] if args else kwargs["hidden_states"]
                state.check_states(hidden, place, index)
                for _, edit in hooks:
                    edit(hidden, state.context(index, hidden.device))

        return layer.register_forward_pre_hook(read, with_kwargs=True)

    def write(_module: Any, _args: Any, output: Any) -> Any:
        import torch

        hooks = state.at(place, index)
        if not hooks:
            return None
        whole = output[0] if isinstance(output, tuple) else output
        # Some expert layers put out one row per token; in a shared pass the main one's tokens come first
        tokens = whole.reshape(-1, whole.shape[-1])
        mine = state.batch * state.rows
        state.check_states(whole, place, index)
        hidden = tokens[:mine].reshape(state.batch, state.rows, -1)
        for _, edit in hooks:
            hidden = edit(hidden, state.context(index, hidden.device))
        hidden = hidden.reshape(mine, -1)
        if mine < len(tokens):
            hidden = torch.cat([hidden, tokens[mine:]])
        hidden = hidden.reshape(whole.shape)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    module = layer
    if place in _MODULES:
        names = _MODULES[place]
        module = next((found for name in names if (found := getattr(layer, name, None)) is not None), None)
        if module is None:
            if not needed:
                return None
            what = "MLP to steer" if place == "mlp_out" else "attention block to edit"
            raise UnsupportedModel(f"{state.name}: decoder layer {index} has no {what}")
    return module.register_forward_hook(write)


_REGISTERING = Lock()
_STANDING_IN: dict[str, tuple[Any, Any, int]] = {}
"""By the name of an attention function of transformers: it, ours that stands in for it, and how many blocks need ours."""


@contextmanager
def _attention_function(name: str) -> Iterator[None]:
    """Our attention function stands in for transformers' function of that name while any block needs it.

    The name stays. Models ask for it in code of their own (sparse masks are built for ``sdpa`` and ``eager`` alone), so that
    under a name of ours they would compute something else. Modules in which nothing is in place go on to their function.
    """
    from transformers import AttentionInterface

    from keepsight.engines.hf.attention import attention

    with _REGISTERING:
        base = AttentionInterface()[name]
        base, ours, users = _STANDING_IN.get(name) or (base, functools.partial(attention, base), 0)
        _STANDING_IN[name] = (base, ours, users + 1)
        if users == 0:
            AttentionInterface.register(name, ours)
    try:
        yield
    finally:
        with _REGISTERING:
            base, ours, users = _STANDING_IN.pop(name)
            if users > 1:
                _STANDING_IN[name] = (base, ours, users - 1)
            elif (
                AttentionInterface().get(name) is ours
            ):  # another library may have put its own there meanwhile
                AttentionInterface.register(name, base)


@contextmanager
def _attention_replaced(target: Target, state: EditState) -> Iterator[None]:
    """Attention in the decoder's layers goes through our function; that of other modules stays as it is."""
    from transformers import AttentionInterface

    name = target.text_config._attn_implementation
    if name in ("flex_attention", "eager"):
        # Inkling 2 and HunYuan 4 have their attention in their own files alone
        other = getattr(type(target.model), "_supports_sdpa", True)
        hint = "; call model.set_attn_implementation('sdpa')" if other else ", and it has no other"
        raise UnsupportedModel(
            f"{target.name}: attention edits stand on top of 'sdpa' or a flash kernel, not {name!r}{hint}"
        )
    if name not in AttentionInterface():
        raise UnsupportedModel(
            f"{target.name}: attention {name!r} is not one that can be wrapped; load it with 'sdpa'"
        )
    if (reason := why_not_wrapped(name)) is not None:
        raise UnsupportedModel(f"{target.name}: {reason}")
    with registered_layers(target, state), _attention_function(name):
        yield


def why_not_wrapped(name: str) -> str | None:
    """Why an attention function of transformers cannot be stood in for, in a clause; None where it can."""
    from transformers import AttentionInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if name in ALL_ATTENTION_FUNCTIONS and ALL_ATTENTION_FUNCTIONS[name] is not AttentionInterface().get(
        name
    ):
        return (
            f"another library has put its own function for {name!r} into transformers' ALL_ATTENTION_FUNCTIONS, which goes"
            " before ours: register it with AttentionInterface.register instead"
        )
    return None


@contextmanager
def watching_candidates(model: PreTrainedModel, change: Callable[[bool], None]) -> Iterator[None]:
    """Tells ``change`` True while assisted decoding asks for candidate tokens inside the block, and False afterwards.

    ``generate`` asks its model for a candidate generator, whether the candidates come from a draft model, from the prompt or
    from the model's own early layers.
    """
    owner: Any = model

    def around(make: Any) -> Any:
        @functools.wraps(make)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            generator = make(*args, **kwargs)
            get = generator.get_candidates

            @functools.wraps(get)
            def get_candidates(*args: Any, **kwargs: Any) -> Any:
                change(True)
                try:
                    return get(*args, **kwargs)
                finally:
                    change(False)

            generator.get_candidates = get_candidates
            return generator

        return wrapper

    name = "_get_candidate_generator"
    if not hasattr(owner, name):
        raise UnsupportedModel(
            f"this version of transformers has no {name}, by which drafts of assisted decoding are told apart"
        )
    # A copy made meanwhile would keep the wrapper, and with it this very model
    with (
        replaced(owner, "_keepsight_in_place", _NoCopy()),
        replaced(owner, name, around=around),
    ):
        yield


@contextmanager
def watching_logits(model: PreTrainedModel, seen: Callable[[Tensor], None]) -> Iterator[None]:
    """Inside the block ``seen`` is told the logits of every pass over the model, ``(rows, tokens, vocab)``."""

    def hook(_module: Any, _args: Any, output: Any) -> None:
        logits = output[0] if isinstance(output, tuple) else getattr(output, "logits", None)
        if logits is not None:
            seen(logits)

    with ExitStack() as stack:
        stack.enter_context(replaced(model, "_keepsight_in_place", _NoCopy()))
        stack.callback(model.register_forward_hook(hook).remove)
        yield


def unwrapped_generate(model: PreTrainedModel) -> Callable[..., Any]:
    """The model's own ``generate``, without the methods of any block that is open on it."""
    from transformers.generation import GenerationMixin

    return functools.partial(GenerationMixin.generate, model)
