"""The engine for models of transformers: parts in place around ``model.generate``, in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from keepsight.engines.base import Engine
from keepsight.errors import NeedsBlock
from keepsight.parts import Contrast, Edit, Lens, Part, Prelude, describe

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LogitsProcessor

    from keepsight.engines.hf.branch import Branch
    from keepsight.method import Method
    from keepsight.parts import View
    from keepsight.target import Target


class HFEngine(Engine):
    """Puts parts in place in a model of transformers: amateurs, edits, lenses and preludes."""

    def why_not(self, part: Part, target: Target) -> str | None:
        if not isinstance(part, Contrast) and (compiled := target.compiled_module) is not None:
            # A compiled pass skips hooks that were not there when it was compiled, and says nothing
            return (
                f"{compiled} is compiled, and a compiled pass leaves out what acts inside the model: load the model anew"
                " without compile()"
            )
        if isinstance(part, (Contrast, Edit, Lens, Prelude)):
            return None
        return f"{type(part).__name__} is not a part that this engine knows"

    @contextmanager
    def open(self, target: Target, methods: Sequence[Method]) -> Iterator[list[LogitsProcessor]]:
        from keepsight.engines.hf.assisted_decoding import watching_drafts
        from keepsight.engines.hf.contrast_processor import ContrastProcessor
        from keepsight.engines.hf.edit_state import busy, check_free, one_generation, preparing
        from keepsight.engines.hf.lens import LensProcessor, RecordLayers
        from keepsight.engines.hf.patching import editing, watching_logits

        parts = self.parts(target, methods)
        check_free(target.model)
        with ExitStack() as stack, ExitStack() as placing:
            placing.enter_context(busy())
            # Edits act in the order of the methods; what a lens reads is one of them
            edits: list[Edit] = []
            records: dict[int, RecordLayers] = {}
            for part in parts:
                if isinstance(part, Lens):
                    records[id(part)] = RecordLayers(frozenset(part.layers))
                    edits.append(records[id(part)])
                elif isinstance(part, Edit):
                    edits.append(part)
            # The last layer, after all edits, shows whether the lens reads this model as the model reads itself
            final = RecordLayers(frozenset({len(target.layers) - 1})) if records else None
            if final is not None:
                edits.append(final)
            if edits:
                stack.enter_context(editing(target, *edits))
                stack.enter_context(one_generation(target.model))
            processors: list[LogitsProcessor] = []
            if any(isinstance(part, (Contrast, Lens)) for part in parts):
                drafts = stack.enter_context(watching_drafts(target.model))
            for part in parts:
                if isinstance(part, Contrast):
                    contrast = ContrastProcessor(part, target, drafts)
                    stack.enter_context(contrast.sharing_passes(target))
                    processors.append(contrast)
                elif isinstance(part, Lens):
                    assert final is not None
                    lens = LensProcessor(part, target, records[id(part)], final, drafts)
                    stack.enter_context(watching_logits(target.model, lens.saw))
                    processors.append(lens)
                elif isinstance(part, Prelude):
                    with preparing(target.model):
                        part.run(HFPasses(target))
            placing.close()
            yield processors

    def processor(self, target: Target, method: Method) -> LogitsProcessor:
        from keepsight.engines.hf.contrast_processor import Chain, ContrastProcessor

        found: list[Any] = []
        for part in self.parts(target, [method]):
            if not isinstance(part, Contrast):
                raise NeedsBlock(
                    f"{method.name()} {describe(part)}, which no logits processor can: open a block around your code,"
                    f" `with mitigate(model, {method!r}): model.generate(**inputs)`"
                )
            found.append(ContrastProcessor(part, target))
        return found[0] if len(found) == 1 else Chain(target, found)


class HFPasses:
    """What a prelude may do with a model of transformers; see ``keepsight.parts.Passes``."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def prefill(self, view: View, *observers: Edit) -> None:
        from keepsight.engines.hf.branch import Branch, shared_branch

        inputs = view.inputs(self._target)
        branch = Branch(self._target.model, inputs)
        # Observing changes nothing, so a pass without the picture is also the prefill of an amateur with the same prompt.
        # One with the picture is not kept: nobody has that prompt but the main generation, and its cache is large
        if not branch.sees and not (shared := shared_branch(self._target, inputs)).begun:
            branch = shared
        self._observed(observers, branch)

    def _observed(self, observers: Sequence[Edit], branch: Branch) -> None:
        from keepsight.engines.hf.edit_state import isolated_edits
        from keepsight.engines.hf.patching import editing

        with (
            editing(self._target, *observers),
            isolated_edits(self._target.model, *observers, **branch.place()),
        ):
            branch.begin()

    def generate(self, view: View, *observers: Edit, **options: Any) -> Tensor:
        from keepsight.engines.hf.branch import Branch
        from keepsight.engines.hf.edit_state import branch_forward, isolated_edits
        from keepsight.engines.hf.patching import editing, unwrapped_generate

        target = self._target
        inputs = view.inputs(target)
        ids = inputs["input_ids"]
        with ExitStack() as stack:
            if observers:
                stack.enter_context(editing(target, *observers))
            stack.enter_context(
                isolated_edits(target.model, *observers, **Branch(target.model, inputs).place())
            )
            # Its passes are not the main generation's, which amateurs wait to share
            stack.enter_context(branch_forward(target.model, None))
            written: Tensor = unwrapped_generate(target.model)(**inputs, **options)
        return written[:, ids.shape[1] :]


ENGINE = HFEngine()
