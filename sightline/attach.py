"""The one file that is allowed to touch a model. Whatever it changes, it restores, also after an error."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from threading import get_ident
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sightline.errors import ConcurrentUse, InputError, UnsupportedModel

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from sightline.decoding._branch import Branch
    from sightline.edit import Edit, Site
    from sightline.fusion import Meeting
    from sightline.packing import Packed
    from sightline.target import Target


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


class _Session:
    """The edits inside one model, and where its current forward pass stands.

    What is the same in every layer of a pass is worked out once per pass, on the CPU where that saves a wait for the GPU.
    """

    def __init__(self, target: Target) -> None:
        self.edits: list[Edit] = []
        self.prompt = target.prompt
        self.image = target.image_mask
        self.first = 0
        self.rows = 0
        self.batch = 0
        self.seams: set[str] = set()
        self.known: dict[Any, Any] = {}
        self.images: dict[Any, Tensor] = {}
        self.thread = get_ident()
        self.meeting: Meeting | None = None
        self.packed: Packed | None = None

    def begin(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the decoder runs: how much of the text has it seen, and how much is new?"""
        from sightline.target import cache_among

        tokens: Any = kwargs.get("inputs_embeds")
        if tokens is None:
            tokens = kwargs.get("input_ids", args[0] if args else None)
        past = cache_among(kwargs)
        self.first = 0 if past is None else int(past.get_seq_length())
        self.batch, self.rows = tokens.shape[:2]
        self.known = {}

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """``make()`` at its first use in a pass, the same thing afterwards."""
        if key not in self.known:
            self.known[key] = make()
        return self.known[key]

    def site(self, layer: int, device: Any) -> Site:
        from sightline.edit import Site

        key = (device, self.batch)
        if key not in self.images:  # kept from pass to pass: asking a GPU for it would wait for the GPU
            each = self.batch // self.image.shape[0]
            self.images[key] = self.image.to(device).repeat_interleave(each, dim=0)
        return Site(layer=layer, first=self.first, rows=self.rows, prompt=self.prompt, image=self.images[key])

    def at(self, layer: int, seam: str) -> list[Edit]:
        return [edit for edit in self.edits if layer in edit.layers and edit.overrides(seam)]


OURS = "sightline_"
"""What the names of attention functions begin with that stand in for transformers' own."""

_SESSIONS: WeakKeyDictionary[Any, _Session] = WeakKeyDictionary()
"""By model, and by each of its decoder's attention modules. Nothing is stored on a module."""


@contextmanager
def editing(target: Target, *edits: Edit) -> Iterator[None]:
    """Edits in place inside the block. Blocks nest: edits of one seam act in the order in which they were entered.

    Raises:
        UnsupportedModel: a layer has no place for an edit, or the model's attention cannot be replaced at run time.
        ConcurrentUse: another thread is generating with edits on this very model.
    """
    model = target.model
    with ExitStack() as stack:
        session = _SESSIONS.get(model)
        if session is None:
            session = stack.enter_context(_opened(target))
        elif session.thread != get_ident():
            raise ConcurrentUse(
                "another thread is generating with edits on this model: one generation at a time, or one on"
                " sightline.twin.twin(model), which has the same weights"
            )
        before = list(session.edits)
        stack.callback(setattr, session, "edits", before)
        stack.enter_context(_seams(target, session, edits))
        session.edits = [*before, *edits]
        yield


@contextmanager
def alone(
    model: PreTrainedModel, *edits: Edit, prompt: int = 0, image: Tensor | None = None
) -> Iterator[None]:
    """Inside the block only ``edits`` act on the model, for other prompts than the main ones; none: it runs unedited."""
    session = _SESSIONS.get(model)
    if session is None:
        if edits:
            raise InputError("edits can only stand alone within editing()")
        yield
        return
    before = _standing(session)
    try:
        session.edits, session.prompt = list(edits), prompt
        if image is not None:
            session.image, session.images = image, {}
        yield
    finally:
        _stand(session, before)


_STANDING = ("edits", "prompt", "image", "images", "first", "rows", "batch", "known")


def _standing(session: _Session) -> dict[str, Any]:
    return {name: getattr(session, name) for name in _STANDING}


def _stand(session: _Session, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(session, name, value)


def resumed(model: PreTrainedModel) -> Callable[[], AbstractContextManager[None]]:
    """Blocks in which the model's edits stand where they stand now, whatever ``alone`` has put in their place since."""
    session = _SESSIONS[model]
    now = _standing(session)

    @contextmanager
    def block() -> Iterator[None]:
        before = _standing(session)
        try:
            _stand(session, now)
            yield
        finally:
            _stand(session, before)

    return block


@contextmanager
def meeting_in(target: Target, meeting: Meeting) -> Iterator[bool]:
    """Passes over the model meet inside the block; yields False, and does nothing, if another thread holds the model."""
    from sightline.thin import is_plain, slow_here

    model: Any = target.model
    with ExitStack() as stack:
        session = _SESSIONS.get(model)
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


def spared(model: PreTrainedModel, rows: Tensor, columns: Tensor) -> bool:
    """Whether the edits that stand now leave tokens of the prompt alone, ``(some,)`` rows and ``(some, tokens)`` columns.

    An edit of attention weights names the tokens it touches; of others it is not known.
    """
    session = _SESSIONS[model]
    for edit in session.edits:
        if any(edit.overrides(seam) for seam in ("heads", "leave", "mlp")):
            return False
        if edit.weighs:
            touched = edit.rows(session.site(min(edit.layers, default=0), columns.device))
            if bool(touched.to(columns.device).index_select(0, rows).gather(1, columns).any()):
                return False
    return True


def meeting_of(model: PreTrainedModel) -> Meeting | None:
    """Where passes over the model meet, if this thread has them meet."""
    session = _SESSIONS.get(model)
    return session.meeting if session is not None and session.thread == get_ident() else None


@contextmanager
def packed(model: PreTrainedModel, layout: Packed) -> Iterator[None]:
    """Inside the block a layer works on the tokens of several passes."""
    session = _SESSIONS[model]
    try:
        session.packed = layout
        yield
    finally:
        session.packed = None


@contextmanager
def elsewhere(model: PreTrainedModel, reader: Branch) -> Iterator[None]:
    """Inside the block passes over the model are a branch's and not the main generation's."""
    meeting = meeting_of(model)
    with nullcontext() if meeting is None else meeting.elsewhere(reader):
        yield


@contextmanager
def _opened(target: Target) -> Iterator[_Session]:
    from sightline.target import cache_name

    cache_name(target.decoder.forward)  # a cache by a name unknown would be taken for none at all
    session = _Session(target)
    with ExitStack() as stack:
        stack.callback(target.decoder.register_forward_pre_hook(session.begin, with_kwargs=True).remove)
        stack.enter_context(_listed(target.model, session))
        yield session


@contextmanager
def _listed(key: Any, session: _Session) -> Iterator[None]:
    try:
        _SESSIONS[key] = session
        yield
    finally:
        del _SESSIONS[key]


@contextmanager
def _seams(target: Target, session: _Session, edits: Sequence[Edit]) -> Iterator[None]:
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


def _hook(seam: str, index: int, layer: Any, session: _Session, name: str) -> Any:
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
def _attention_replaced(target: Target, session: _Session) -> Iterator[None]:
    """The decoder's attention function wrapped in ours; the vision tower keeps its own."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

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
        AttentionInterface.register(name, functools.partial(_attention, ALL_ATTENTION_FUNCTIONS[base]))
    with ExitStack() as stack:
        for layer in target.layers:
            for module in layer.modules():
                if hasattr(module, "layer_idx") and hasattr(module, "num_key_value_groups"):
                    stack.enter_context(_listed(module, session))
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


def _attention(
    base: Any,
    module: Any,
    query: Tensor,
    key: Any,
    value: Any,
    attention_mask: Any,
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """An attention function of transformers, in which passes that met go apart again: each has its keys and its mask."""
    session = _SESSIONS.get(module)
    if session is None or session.packed is None or session.thread != get_ident():
        return _edited_attention(base, module, query, key, value, attention_mask, *args, **kwargs)
    import torch

    layout = session.packed
    outs = []
    # Queries that a pass leaves out are asked all the same: kernels and masks are for whole prompts
    queries = layout.pack.complete(layout.pack.split_heads(query))
    for i, (rows, mask) in enumerate(zip(queries, layout.masks, strict=True)):
        attend = base if i else functools.partial(_edited_attention, base)  # the main pass comes first
        out, _ = attend(module, rows, key[i], value[i], mask, *args, **kwargs)
        out = out[:, layout.pack.skipped(i) :]
        outs.append(out.reshape(1, -1, *out.shape[2:]))
    return torch.cat(outs, dim=1), None


def _edited_attention(
    base: Any,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *args: Any,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """``base``, and what the edits of the module's session make of it."""
    from sightline.edit import attend

    session = _SESSIONS.get(module)
    layer = int(module.layer_idx)
    weighing = (
        [] if session is None else [edit for edit in session.edits if layer in edit.layers and edit.weighs]
    )
    scaled = [] if session is None else session.at(layer, "heads")
    if session is None or not (weighing or scaled):
        out, weights = base(module, query, key, value, attention_mask, *args, scaling=scaling, **kwargs)
        return out, weights
    site = session.site(layer, query.device)
    out = None
    plan = _plan(session, weighing, query.device) if weighing else None
    if plan is None or not plan.everything:
        out, _ = base(module, query, key, value, attention_mask, *args, scaling=scaling, **kwargs)
    if plan is not None and len(plan.union):
        keys = key.shape[2]
        first_key = max(session.first + session.rows - keys, 0)  # a sliding window keeps the last keys only
        image = session.once(("columns", keys), lambda: site.image_columns(keys, first_key))
        window = kwargs.get("sliding_window")
        bias = session.once(
            ("bias", id(attention_mask), keys, window, id(plan)),
            lambda: plan.bias(attention_mask, session, keys, first_key, window),
        )

        def run(seam: str, weights: Tensor) -> Tensor:
            for edit, mine in zip(weighing, plan.mine, strict=True):
                if edit.overrides(seam):
                    edited = getattr(edit, seam)(weights, image, site)
                    weights = edited if mine is None else weights.where(~mine, edited)
            return weights

        rows = attend(
            query if plan.everything else query[:, :, plan.union],
            key,
            value,
            bias,
            scaling if scaling is not None else query.shape[-1] ** -0.5,
            scores=functools.partial(run, "scores"),
            probabilities=functools.partial(run, "probabilities"),
            softcap=kwargs.get("softcap"),
        )
        if out is None:
            out = rows.contiguous()
        else:
            out = out.clone()
            out[:, plan.union] = rows.where(plan.touched[:, :, None, None], out[:, plan.union])
    assert out is not None
    for edit in scaled:
        out = edit.heads(out, site)
    return out, None


@dataclass(frozen=True, eq=False)
class _Plan:
    """Which rows of a pass are recomputed for some edits."""

    union: Tensor
    """``(some,)`` rows that any edit touches in any prompt of the batch."""
    touched: Tensor
    """``(batch, some)`` bool: which of them are touched in which prompt."""
    mine: tuple[Tensor | None, ...]
    """For each edit ``(batch, 1, some, 1)`` bool: its own rows; None where that is all of them."""
    everything: bool
    """Whether nothing is left for the fast kernel."""
    lowest_row: int

    def bias(
        self, mask: Tensor | None, session: _Session, keys: int, first_key: int, window: int | None
    ) -> Tensor | None:
        from sightline.edit import allowed_keys

        if mask is None and window is None and first_key + keys - 1 <= session.first + self.lowest_row:
            return None
        return allowed_keys(
            mask, self.union, first=session.first, keys=keys, first_key=first_key, window=window
        )


def _plan(session: _Session, weighing: Sequence[Edit], device: Any) -> _Plan:
    def make() -> _Plan:
        import torch

        site = session.site(0, torch.device("cpu"))
        rows = torch.stack([edit.rows(site) for edit in weighing])
        touched = rows.any(0)
        union = touched.any(0).nonzero().flatten()
        own = [None if bool(mine[:, union].all()) else mine[:, None, union, None].to(device) for mine in rows]
        return _Plan(
            union=union.to(device),
            touched=touched[:, union].to(device),
            mine=tuple(own),
            everything=bool(touched.all()),
            lowest_row=int(union.min()) if len(union) else 0,
        )

    plan: _Plan = session.once(("plan", *map(id, weighing), device), make)
    return plan
