"""The two doors to a method: a block around unchanged code, and processors for whoever calls ``generate`` with their own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

from keepsight.engines.hf.edit_state import check_free
from keepsight.engines.hf.patching import replaced
from keepsight.errors import InputError
from keepsight.method import Method
from keepsight.registry import as_recipes, compatible

if TYPE_CHECKING:
    from transformers import LogitsProcessor, PreTrainedModel


@contextmanager
def attached(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    *methods: Method | str,
    fused: bool | Literal["auto"] = "auto",
) -> Iterator[list[LogitsProcessor]]:
    """Methods in place for one generation; yields the logits processors that belong into it::

        with attached(model, inputs, VHR(), M3ID()) as processors:
            model.generate(**inputs, logits_processor=processors)

    The door for whoever calls ``generate`` with processors of their own. ``mitigate`` is this around every call.

    Args:
        fused: whether the second branch of a contrastive method rides along in the main generation's passes, which gives the
            same tokens at a fraction of the time: ``"auto"`` wherever that is possible, True or raise, False never.

    Raises:
        UnsupportedModel, NoImageTokens: before anything is changed.
        ConcurrentUse: another thread is generating with edits on this very model.
    """
    from keepsight.target import Target

    recipes = list(as_recipes(methods))
    target = Target(model, inputs, fused=fused)
    check_free(model)
    with ExitStack() as stack:
        yield [processor for recipe in recipes for processor in stack.enter_context(recipe.attach(target))]


@contextmanager
def mitigate(
    model: PreTrainedModel, *methods: Method | str, fused: bool | Literal["auto"] = "auto"
) -> Iterator[PreTrainedModel]:
    """Every ``model.generate`` inside the block is mitigated; the calling code stays as it is.

    Methods apply in the order given, after a caller's own ``logits_processor``; blocks nest, the outer block's methods
    first. Each call of ``generate`` gets fresh state, so any number of calls may stand in one block. Whoever else calls
    this model object meanwhile, from another thread for example, is mitigated too.

    Args:
        model: any decoder-only image-text-to-text model of transformers.
        methods: recipes, or their spec strings (``"m3id:decay=0.05"``).
        fused: see ``attached``; of nested blocks the outermost that does not say ``"auto"`` has its way.

    Raises:
        ConcurrentUse: from a ``generate``, if another thread is generating with edits on this very model.
        ConflictingMethods: a method is given twice, in one block or in nested ones.
        UnsupportedModel: at once, if the model cannot be driven.
        NoImageTokens: from a ``generate`` whose prompt holds no picture.
    """
    from keepsight.target import check_generates

    recipes = list(as_recipes(methods))
    check_generates(model)
    block = _Block(tuple(recipes), fused)
    with _OPENING:
        blocks = getattr(model.generate, "blocks", None)
        compatible([*(recipe for other in blocks or () for recipe in other.recipes), *recipes])
        if blocks is None:
            blocks = _Blocks()
            blocks.open.enter_context(replaced(model, "generate", _mitigated(model, model.generate, blocks)))
        blocks.append(block)
    try:
        yield model
    finally:
        with _OPENING:
            blocks.remove(block)
            if not blocks:
                blocks.open.close()


@dataclass(frozen=True, eq=False)
class _Block:
    recipes: tuple[Method, ...]
    fused: bool | Literal["auto"]


class _Blocks(list[_Block]):
    """The blocks that are open on a model, outer ones first, and what is undone when the last of them ends.

    Blocks of several threads need not nest: one may end before another that was opened within it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.open = ExitStack()


_OPENING = Lock()


def _mitigated(model: Any, generate: Any, blocks: _Blocks) -> Any:
    """``generate`` under the methods of all blocks that are open when it is called."""
    from keepsight.engines.hf.assisted_decoding import drafting
    from keepsight.engines.hf.contrast_processor import ContrastMethod

    arguments = inspect.signature(generate)

    @functools.wraps(generate)
    def mitigated(*args: Any, **kwargs: Any) -> Any:
        if drafting():
            return generate(*args, **kwargs)  # the model drafts for itself: any draft is right
        standing = list(blocks)
        recipes = [recipe for block in standing for recipe in block.recipes]
        # The outermost block that asks for one way or the other has it
        sharing: bool | Literal["auto"] = next(
            (block.fused for block in standing if block.fused != "auto"), "auto"
        )
        bound = arguments.bind(*args, **kwargs).arguments
        given = {**bound, **bound.get("kwargs", {})}
        if given.get("inputs") is not None:
            given["input_ids"] = given["inputs"]
        if given.get("cache_implementation") == "paged":
            raise InputError(
                "continuous batching drops logits processors: leave out cache_implementation='paged'"
            )
        more = bound.pop("kwargs", {})
        if _compiles(model, given):
            if given.get("compile_config") is None:
                more = {**more, "disable_compile": True}
            elif not all(isinstance(recipe, ContrastMethod) for recipe in recipes) or sharing is True:
                raise InputError(
                    f"{' '.join(recipe.name() for recipe in recipes)}: a compiled step keeps the model it was compiled"
                    " with, and what acts inside it or shares its passes would be left out: leave out compile_config"
                )
            else:
                sharing = False
        with attached(model, given, *recipes, fused=sharing) as added:
            bound["logits_processor"] = [*(bound.get("logits_processor") or []), *added]
            return generate(**bound, **more)

    mitigated.blocks = blocks  # type: ignore[attr-defined]
    return mitigated


def _compiles(model: Any, given: Mapping[str, Any]) -> bool:
    """Whether transformers may compile decoding steps by itself: it does, on a GPU, where the cache has a fixed size."""
    config = given.get("generation_config") or model.generation_config
    cache = given.get("cache_implementation") or getattr(config, "cache_implementation", None)
    off = given.get("disable_compile", getattr(config, "disable_compile", None))
    return cache is not None and "dynamic" not in str(cache) and not off
