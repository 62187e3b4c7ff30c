"""The edits inside a model while somebody generates: state by model, in a table, and nothing of it on a module.

``attach`` opens and closes sessions and puts hooks in place; here is what they look up, and who changes it for a while.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import get_ident
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from keepsight.errors import ConcurrentUse, InputError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from keepsight.engines.hf.branch import Branch
    from keepsight.engines.hf.fused_pass import Meeting
    from keepsight.engines.hf.packing import Packed
    from keepsight.parts import Edit, Site
    from keepsight.target import Target

_STANDING = ("edits", "prompt", "image", "images", "first", "rows", "batch", "known")


class Session:
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
        from keepsight.target import cache_among

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
        from keepsight.parts import Site

        key = (device, self.batch)
        if key not in self.images:  # kept from pass to pass: asking a GPU for it would wait for the GPU
            each = self.batch // self.image.shape[0]
            self.images[key] = self.image.to(device).repeat_interleave(each, dim=0)
        return Site(layer=layer, first=self.first, rows=self.rows, prompt=self.prompt, image=self.images[key])

    def at(self, layer: int, seam: str) -> list[Edit]:
        return [edit for edit in self.edits if layer in edit.layers and edit.overrides(seam)]

    def standing(self) -> dict[str, Any]:
        """What a pass with another prompt or other edits would change."""
        return {name: getattr(self, name) for name in _STANDING}

    def stand(self, values: dict[str, Any]) -> None:
        """Be again as ``standing`` found it."""
        vars(self).update(values)


SESSIONS: WeakKeyDictionary[Any, Session] = WeakKeyDictionary()
"""By model, and by each of its decoder's attention modules. Nothing is stored on a module."""


@contextmanager
def listed(key: Any, session: Session) -> Iterator[None]:
    try:
        SESSIONS[key] = session
        yield
    finally:
        del SESSIONS[key]


@contextmanager
def alone(
    model: PreTrainedModel, *edits: Edit, prompt: int = 0, image: Tensor | None = None
) -> Iterator[None]:
    """Inside the block only ``edits`` act on the model, for other prompts than the main ones; none: it runs unedited."""
    session = SESSIONS.get(model)
    if session is None:
        if edits:
            raise InputError("edits can only stand alone within editing()")
        yield
        return
    before = session.standing()
    try:
        session.edits, session.prompt = list(edits), prompt
        if image is not None:
            session.image, session.images = image, {}
        yield
    finally:
        session.stand(before)


def check_free(model: PreTrainedModel, *, for_edits: bool = False) -> None:
    """Raises ``ConcurrentUse`` where another thread generates with edits on this very model.

    Args:
        for_edits: whether edits are to come, which share a model with no other thread's shared passes either.
    """
    session = SESSIONS.get(model)
    if session is not None and session.thread != get_ident() and (session.edits or for_edits):
        raise ConcurrentUse(
            "another thread is generating with edits on this model: one generation at a time, or one on"
            " keepsight.engines.hf.weight_sharing.twin(model), which has the same weights"
        )


def resumed(model: PreTrainedModel) -> Callable[[], AbstractContextManager[None]]:
    """Blocks in which the model's edits stand where they stand now, whatever ``alone`` has put in their place since."""
    session = SESSIONS[model]
    now = session.standing()

    @contextmanager
    def block() -> Iterator[None]:
        before = session.standing()
        try:
            session.stand(now)
            yield
        finally:
            session.stand(before)

    return block


def spared(model: PreTrainedModel, rows: Tensor, columns: Tensor) -> bool:
    """Whether the edits that stand now leave tokens of the prompt alone, ``(some,)`` rows and ``(some, tokens)`` columns.

    An edit of attention weights names the tokens it touches; of others it is not known.
    """
    session = SESSIONS[model]
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
    session = SESSIONS.get(model)
    return session.meeting if session is not None and session.thread == get_ident() else None


@contextmanager
def packed(model: PreTrainedModel, layout: Packed) -> Iterator[None]:
    """Inside the block a layer works on the tokens of several passes."""
    session = SESSIONS[model]
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
