"""The one file that is allowed to touch a model. Whatever it changes, it restores, also after an error."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sightline.errors import InputError
from sightline.method import Method

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def mitigate(model: PreTrainedModel, *methods: Method | str) -> Iterator[PreTrainedModel]:
    """Every ``model.generate`` inside the block is mitigated; the calling code stays as it is.

    Methods apply in the order given, after a caller's own ``logits_processor``; blocks nest, the outer block's methods
    first. Each call of ``generate`` gets fresh state, so any number of calls may stand in one block. Whoever else calls
    this model object meanwhile, from another thread for example, is mitigated too.

    Args:
        model: any decoder-only image-text-to-text model of transformers.
        methods: recipes, or their spec strings (``"m3id:decay=0.05"``).

    Raises:
        UnsupportedModel: at once, if the model cannot be driven.
        NoImageTokens: from a ``generate`` whose prompt holds no picture.
    """
    from sightline.spec import parse
    from sightline.target import Target, _check_generates

    recipes = [parse(method) if isinstance(method, str) else method for method in methods]
    for recipe in recipes:
        if not isinstance(recipe, Method):
            raise InputError(f"mitigate() takes methods such as M3ID() or 'm3id', not {recipe!r}")
    _check_generates(model)

    generate: Any = model.generate
    if isinstance(outer := getattr(generate, "recipes", None), tuple):
        # A block within a block: one wrapper with both sets, so that the outer methods act first
        recipes, generate = (
            [*outer, *recipes],
            inspect.unwrap(generate, stop=lambda f: not hasattr(f, "recipes")),
        )
    arguments = inspect.signature(generate)

    @functools.wraps(generate)
    def mitigated(*args: Any, **kwargs: Any) -> Any:
        bound = arguments.bind(*args, **kwargs).arguments
        given = {**bound, **bound.get("kwargs", {})}
        if given.get("inputs") is not None:
            given["input_ids"] = given["inputs"]
        if given.get("cache_implementation") == "paged":
            raise InputError("continuous batching drops logits processors: leave out cache_implementation='paged'")
        target = Target(model, given)
        added = [recipe.bind(target) for recipe in recipes]
        bound["logits_processor"] = [*(bound.get("logits_processor") or []), *added]
        more = bound.pop("kwargs", {})
        return generate(**bound, **more)

    mitigated.recipes = tuple(recipes)  # type: ignore[attr-defined]
    with _attribute(model, "generate", mitigated):
        yield model


@contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
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
