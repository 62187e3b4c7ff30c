"""The two ways to use a method: a block around unchanged code, and processors for callers with processors of their own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from keepsight.engines import default
from keepsight.engines.hf.edit_state import STATES, busy, serving
from keepsight.engines.hf.patching import replaced, wrapping_generate
from keepsight.errors import ConcurrentUse, InputError, UnsupportedModel
from keepsight.method import Method
from keepsight.registry import as_recipes, compatible

if TYPE_CHECKING:
    from transformers import LogitsProcessor, PreTrainedModel

    from keepsight.source.source import Source

Fused = bool | Literal["auto"]


@contextmanager
def attached(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    *methods: Method | str,
    fused: Fused = "auto",
    source: Source | None = None,
) -> Iterator[list[LogitsProcessor]]:
    """Methods in place for one generation; yields the logits processors that belong into it::

        with attached(model, inputs, VHR(), M3ID()) as processors:
            model.generate(**inputs, logits_processor=processors)

    For whoever calls ``generate`` with processors of their own. ``mitigate`` is this around every call.

    Args:
        model: any decoder-only image-text-to-text model of transformers.
        inputs: what the model's processor returned, the same mapping that goes to ``generate``.
        methods: recipes, or their spec strings, which may join several with ``+``.
        fused: whether the amateur of a contrastive method shares the main generation's passes, which gives the same tokens
            at a fraction of the time: ``"auto"`` wherever that is possible and pays, True or raise, False never.
        source: the messages and pictures that ``inputs`` were made of. Methods that need another prompt, such as one
            without the picture, then get it from the chat template instead of by dropping tokens.

    Raises:
        InputError: what is given is not a model, inputs and methods, in this order.
        UnsupportedModel, NoImageTokens: before anything is changed.
        ConcurrentUse: another thread is generating with edits on this very model.
        ProcessorReused: from ``generate``, if it is the second one in the block, or has another prompt than ``inputs``.
    """
    from keepsight.target import Target

    _check_order("attached(model, inputs, M3ID())", model)
    if not isinstance(inputs, Mapping):
        raise InputError(
            f"attached takes the model's inputs after the model, and got a {type(inputs).__name__}: write"
            " attached(model, inputs, M3ID())"
        )
    recipes = as_recipes(methods)
    target = Target(model, inputs, fused=fused, source=source)
    if fused is not False and (compiled := target.compiled_module) is not None:
        if fused is True:
            raise UnsupportedModel(
                f"{target.name}: fused=True, but its forward is compiled ({compiled}), and a compiled pass knows of no"
                " other; pass fused='auto' or False"
            )
        target = Target(model, inputs, fused=False, source=source)
    with default().open(target, recipes) as processors, _uncompiled(model):
        yield processors


@contextmanager
def _uncompiled(model: Any) -> Iterator[None]:
    """Inside the block transformers compiles no step by itself where something is in place inside the model: a compiled step
    leaves out what came after it was compiled."""
    if model not in STATES:
        yield
        return
    with replaced(model.generation_config, "disable_compile", True):
        yield


class mitigate:
    """Every ``model.generate`` inside the block is mitigated; the calling code stays as it is::

        with mitigate(model, M3ID()):
            model.generate(**inputs)

    Methods apply in the order given, after a caller's own ``logits_processor``; blocks nest, the outer block's methods
    first. Each call of ``generate`` gets fresh state, so any number of calls may stand in one block.

    A block must not span an ``await``: two tasks of one thread cannot be told apart, and would share their methods.

    Threads: a block is that of the thread that opened it. A thread that has opened none of its own, such as one that a
    streamer starts for ``generate``, uses the blocks of the one thread that has; if several have, ``generate`` raises.

    Args:
        model: any decoder-only image-text-to-text model of transformers.
        methods: recipes, or their spec strings (``"m3id:decay=0.05"``, ``"m3id+vhr"``).
        fused: see ``attached``; of nested blocks the outermost that does not say ``"auto"`` decides.

    Raises:
        UnsupportedModel: at once, if the model cannot be driven.
        InputError: at once, if what is given is not a model and then methods.
        ConflictingMethods: a method is given twice, in one block or in nested ones.
        ConcurrentUse: from a ``generate``, if another thread is generating with edits on this very model, or if it cannot
            be told whose block is meant.
        NoImageTokens: from a ``generate`` whose prompt holds no picture.
    """

    def __init__(self, model: PreTrainedModel, *methods: Method | str, fused: Fused = "auto") -> None:
        from keepsight.target import check_generates

        self._entered = False
        _check_order("mitigate(model, M3ID())", model)
        recipes = as_recipes(methods)
        check_generates(model)
        self._model: Any = model
        self._block = _Block(recipes, fused)

    def __enter__(self) -> PreTrainedModel:
        if self._entered:
            raise InputError(
                "a mitigate(…) block can be entered once: write mitigate(model, …) anew for each"
            )
        self._entered = True
        model, thread = self._model, get_ident()
        with _OPENING:
            blocks = _BLOCKS.get(model)
            mine = [] if blocks is None else blocks.by_thread.get(thread, [])
            compatible([*(recipe for other in mine for recipe in other.recipes), *self._block.recipes])
            if blocks is None:
                blocks = _BLOCKS[model] = _Blocks()
                handler = functools.partial(_handle, model, blocks)
                blocks.open.enter_context(wrapping_generate(model, handler))
            blocks.by_thread.setdefault(thread, []).append(self._block)
        self._blocks, self._thread = blocks, thread
        return self._model  # type: ignore[no-any-return]

    def __exit__(self, *error: object) -> None:
        with _OPENING:
            # The block may end in another thread than the one that opened it, as it does in asynchronous code
            mine = self._blocks.by_thread[self._thread]
            mine.remove(self._block)
            if not mine:
                del self._blocks.by_thread[self._thread]
            if not self._blocks.by_thread:
                del _BLOCKS[self._model]
                self._blocks.open.close()

    def __del__(self) -> None:
        # Without `with` nothing would happen, and nothing would tell
        if not getattr(self, "_entered", True) and hasattr(self, "_block"):
            import warnings

            warnings.warn(
                "mitigate(model, …) was called without `with`, so that it did nothing: write"
                " `with mitigate(model, …): model.generate(**inputs)`",
                stacklevel=2,
            )


@dataclass(frozen=True, eq=False)
class _Block:
    recipes: tuple[Method, ...]
    fused: Fused


class _Blocks:
    """The blocks that are open on a model, by thread and outer ones first, and what is undone when the last of them ends.

    Blocks of several threads need not nest: one may end before another that was opened within it.
    """

    def __init__(self) -> None:
        self.by_thread: dict[int, list[_Block]] = {}
        self.open = ExitStack()
        self.serving: set[int] = set()
        """Threads in which a mitigated call is being served."""

    def here(self) -> list[_Block]:
        """The blocks that a call from this thread means.

        Raises:
            ConcurrentUse: the thread has opened none, and several others have.
        """
        with _OPENING:
            if not self.by_thread:
                return []
            own = self.by_thread.get(get_ident())
            if own is None and len(self.by_thread) == 1:
                (own,) = self.by_thread.values()
            if own is None:
                raise ConcurrentUse(
                    "several threads have a mitigate block open on this model, and this thread has none: open one in this"
                    " thread as well, or give each thread a model of its own with"
                    " keepsight.engines.hf.weight_sharing.twin(model)"
                )
            return list(own)


_OPENING = Lock()


_BLOCKS: WeakKeyDictionary[Any, _Blocks] = WeakKeyDictionary()
"""The blocks that are open, by model."""


def _handle(
    model: Any, blocks: _Blocks, generate: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """A call of ``model.generate`` under the methods of all blocks that are open when it comes."""
    thread = get_ident()
    # A call within a call is a draft of assisted decoding, a prelude or somebody's callback, and runs as it is
    standing = [] if thread in blocks.serving else blocks.here()
    if not standing:
        with serving(model):
            return generate(*args, **kwargs)
    blocks.serving.add(thread)
    try:
        with busy():
            return _mitigated(model, standing, generate, args, kwargs)
    finally:
        blocks.serving.discard(thread)


def _mitigated(
    model: Any,
    standing: list[_Block],
    generate: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    recipes = [recipe for block in standing for recipe in block.recipes]
    # The outermost block that asks for one way or the other has it
    fused: Fused = next((block.fused for block in standing if block.fused != "auto"), "auto")
    bound = inspect.signature(generate).bind(*args, **kwargs).arguments
    given = {**bound, **bound.get("kwargs", {})}
    if given.get("inputs") is not None:
        given["input_ids"] = given["inputs"]
    if given.get("cache_implementation") == "paged":
        raise InputError(
            "continuous batching drops logits processors: leave out cache_implementation='paged'"
        )
    if given.get("assistant_ensemble_weight") is not None:
        raise InputError(
            "assistant_ensemble_weight mixes the scores of drafts into the model's own, and drafts are not mitigated:"
            " leave it out"
        )
    more = bound.pop("kwargs", {})
    if _compiles(model, given):
        if given.get("compile_config") is None:
            more = {**more, "disable_compile": True}
        elif fused is True or not _only_processors(model, given, recipes):
            raise InputError(
                f"{'+'.join(recipe.name() for recipe in recipes)}: a compiled step keeps the model it was compiled"
                " with, and what acts inside it or shares its passes would be left out: leave out compile_config"
            )
        else:
            fused = False
    with attached(model, given, *recipes, fused=fused) as added, serving(model):
        # A caller's own processors come first
        bound["logits_processor"] = [*(bound.get("logits_processor") or []), *added]
        return generate(**bound, **more)


def _only_processors(model: Any, given: Mapping[str, Any], recipes: list[Method]) -> bool:
    """Whether all that the recipes are made of are contrasts, which need nothing inside the model."""
    from keepsight.parts import Contrast
    from keepsight.target import Target

    target = Target(model, given)
    return all(isinstance(part, Contrast) for recipe in recipes for part in recipe.parts(target))


def _compiles(model: Any, given: Mapping[str, Any]) -> bool:
    """Whether transformers may compile decoding steps by itself: it does, on a GPU, where the cache has a fixed size."""

    def option(name: str) -> Any:
        # As ``generate`` reads them: what a given configuration leaves open is the model's own
        configs = (given.get("generation_config"), model.generation_config)
        found = (given.get(name), *(getattr(config, name, None) for config in configs))
        return next((value for value in found if value is not None), None)

    cache, off = option("cache_implementation"), option("disable_compile")
    return cache is not None and "dynamic" not in str(cache) and not off


def _check_order(call: str, model: Any) -> None:
    """Raises ``InputError`` where a method stands in the place of the model."""
    if isinstance(model, (Method, str)) or (isinstance(model, type) and issubclass(model, Method)):
        raise InputError(f"the model comes first: write {call}")
