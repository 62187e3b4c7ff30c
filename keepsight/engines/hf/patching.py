"""The one file that is allowed to touch a model. Whatever it changes, it restores, also after an error."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import TYPE_CHECKING, Any

from keepsight.engines.hf.edit_state import SESSIONS, Session, check_free, listed
from keepsight.errors import UnsupportedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from keepsight.engines.hf.fused_pass import Meeting
    from keepsight.parts import Edit
    from keepsight.target import Target


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an instance attribute inside the block; afterwards it is what it was, or absent if it was."""
    had = name in vars(owner)
    before = vars(owner).get(name)
    try:
        setattr(owner, name, value)
        yield
    finally:
        if had:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


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


@contextmanager
def text_attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Inside the block the decoder's attention is transformers' ``name``; the vision tower keeps its own.

    Raises:
        UnsupportedModel: its text configuration is not a part of its configuration.
    """
    config = model.config.get_text_config(decoder=True)
    part = next((key for key in model.config.sub_configs if getattr(model.config, key, None) is config), None)
    if part is None:
        raise UnsupportedModel(
            f"{type(model).__name__}: its text configuration is not a part of its configuration"
        )
    before = config._attn_implementation
    model.set_attn_implementation({part: name})
    try:
        yield
    finally:
        model.set_attn_implementation({part: before})


OURS = "keepsight_"
"""What the names of attention functions begin with that stand in for transformers' own."""


@contextmanager
def editing(target: Target, *edits: Edit) -> Iterator[None]:
    """Edits in place inside the block. Blocks nest: edits of one seam act in the order in which they were entered.

    Raises:
        UnsupportedModel: a layer has no place for an edit, or the model's attention cannot be replaced at run time.
        ConcurrentUse: another thread is generating with edits on this very model.
    """
    model = target.model
    check_free(model, for_edits=True)
    with ExitStack() as stack:
        session = SESSIONS.get(model)
        if session is None:
            session = stack.enter_context(_opened(target))
        before = list(session.edits)
        stack.callback(setattr, session, "edits", before)
        stack.enter_context(_seams(target, session, edits))
        session.edits = [*before, *edits]
        yield


@contextmanager
def meeting_in(target: Target, meeting: Meeting) -> Iterator[bool]:
    """Passes over the model meet inside the block; yields False, and does nothing, if another thread holds the model."""
    from keepsight.engines.hf.thin import is_plain, slow_here

    model: Any = target.model
    with ExitStack() as stack:
        session = SESSIONS.get(model)
        if session is None:
            session = stack.enter_context(_opened(target))
        elif session.thread != get_ident():
            yield False
            return
        if "attention" not in session.seams:
            stack.callback(session.seams.discard, "attention")
            session.seams.add("attention")
            stack.enter_context(_attention_replaced(target, session))
        places: list[tuple[Any, str, Callable[[Any], Any]]] = [
            (model, "prepare_inputs_for_generation", meeting.listening),
            (target.decoder, "forward", meeting.at_decoder),
            (target.head, "forward", meeting.at_head),
            *(
                (layer, "forward", functools.partial(meeting.at_layer, i))
                for i, layer in enumerate(target.layers)
            ),
        ]
        tower = getattr(model, "model", None)
        if hasattr(tower, "get_image_features"):
            places.append((tower, "get_image_features", meeting.at_tower))
        if slow_here():
            parts = (target.head, *(part for layer in target.layers for part in layer.modules()))
            # First, so that what stands around the head stands around this as well
            places[:0] = [
                (part, "forward", functools.partial(meeting.at_product, part))
                for part in parts
                if is_plain(part)
            ]
        for owner, name, around in places:
            stack.enter_context(replaced(owner, name, around(getattr(owner, name))))
        stack.callback(setattr, session, "meeting", None)
        session.meeting = meeting
        yield True


@contextmanager
def _opened(target: Target) -> Iterator[Session]:
    from keepsight.target import cache_name

    cache_name(target.decoder.forward)  # a cache by a name unknown would be taken for none at all
    session = Session(target)
    with ExitStack() as stack:
        stack.callback(target.decoder.register_forward_pre_hook(session.begin, with_kwargs=True).remove)
        stack.enter_context(listed(target.model, session))
        yield session


@contextmanager
def _seams(target: Target, session: Session, edits: Sequence[Edit]) -> Iterator[None]:
    """Whatever these edits need and no enclosing block has put in place yet."""
    with ExitStack() as stack:
        wanted = {name for name in _SEAMS for edit in edits if any(map(edit.overrides, _SEAMS[name]))}
        for name in wanted - session.seams:
            stack.callback(session.seams.discard, name)
            session.seams.add(name)
            if name == "attention":
                stack.enter_context(_attention_replaced(target, session))
                continue
            for index, layer in enumerate(target.layers):
                stack.callback(_hook(name, index, layer, session, target.name).remove)
        yield


_SEAMS = {
    "attention": ("scores", "probabilities", "heads"),
    "enter": ("enter",),
    "leave": ("leave",),
    "mlp": ("mlp",),
}


def _hook(seam: str, index: int, layer: Any, session: Session, name: str) -> Any:
    if seam == "enter":

        def read(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if edits := session.at(index, seam):
                hidden = args[0] if args else kwargs["hidden_states"]
                for edit in edits:
                    edit.enter(hidden, session.site(index, hidden.device))

        return layer.register_forward_pre_hook(read, with_kwargs=True)

    def write(_module: Any, _args: Any, output: Any) -> Any:
        import torch

        edits = session.at(index, seam)
        if not edits:
            return None
        whole = output[0] if isinstance(output, tuple) else output
        # Some expert layers put out one row per token; in a shared pass the main one's tokens come first
        tokens = whole.reshape(-1, whole.shape[-1])
        mine = session.batch * session.rows
        hidden = tokens[:mine].reshape(session.batch, session.rows, -1)
        for edit in edits:
            hidden = getattr(edit, seam)(hidden, session.site(index, hidden.device))
        hidden = hidden.reshape(mine, -1)
        if mine < len(tokens):
            hidden = torch.cat([hidden, tokens[mine:]])
        hidden = hidden.reshape(whole.shape)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    if seam == "leave":
        return layer.register_forward_hook(write)
    place = getattr(layer, "mlp", None) or getattr(layer, "feed_forward", None)
    if place is None:
        raise UnsupportedModel(f"{name}: decoder layer {index} has no MLP to steer")
    return place.register_forward_hook(write)


@contextmanager
def _attention_replaced(target: Target, session: Session) -> Iterator[None]:
    """The decoder's attention function wrapped in ours; the vision tower keeps its own."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from keepsight.engines.hf.attention import attention

    model: Any = target.model
    config = model.config.get_text_config(decoder=True)
    base = config._attn_implementation
    if base not in ALL_MASK_ATTENTION_FUNCTIONS or base not in (*ALL_ATTENTION_FUNCTIONS, "eager"):
        raise UnsupportedModel(
            f"{target.name}: attention {base!r} is not one that can be wrapped; load it with 'sdpa'"
        )
    if base in ("flex_attention", "eager"):
        raise UnsupportedModel(
            f"{target.name}: attention edits stand on top of 'sdpa' or a flash kernel, not {base!r};"
            " call model.set_attn_implementation('sdpa')"
        )
    name = OURS + base
    if name not in ALL_ATTENTION_FUNCTIONS:
        # Without a mask function of the same name, models get no mask at all, and padding is attended to. It comes first:
        # a thread that finds the name in the list asked above must find the mask as well
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
        AttentionInterface.register(name, functools.partial(attention, ALL_ATTENTION_FUNCTIONS[base]))
    with ExitStack() as stack:
        for layer in target.layers:
            for module in layer.modules():
                if hasattr(module, "layer_idx") and hasattr(module, "num_key_value_groups"):
                    stack.enter_context(listed(module, session))
        parts = [key for key in model.config.sub_configs if getattr(model.config, key, None) is config]
        if not parts:
            raise UnsupportedModel(
                f"{target.name}: its text configuration is not a part of its configuration"
            )
        stack.callback(model.set_attn_implementation, {parts[0]: base})
        model.set_attn_implementation({parts[0]: name})
        if config._attn_implementation != name:
            raise UnsupportedModel(f"{target.name} does not let its attention be replaced at run time")
        yield
