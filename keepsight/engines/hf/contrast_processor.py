"""The logits processor that contrasts a model with amateurs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from transformers import LogitsProcessor

from keepsight.engines.hf.assisted_decoding import Drafts
from keepsight.engines.hf.branch import Branch, shared_branch
from keepsight.engines.hf.fused_pass import fusing
from keepsight.errors import ProcessorReused
from keepsight.parts import Contrast
from keepsight.target import Target


class PromptGuard:
    """Raises where a processor that was made for one generation meets another one.

    The same prompt may come with another picture, of which a processor sees nothing: so a second generation is refused even
    if its prompt is the same.
    """

    def __init__(self, prompt_ids: Tensor) -> None:
        self._prompt_ids = prompt_ids
        self._length = 0

    def check(self, input_ids: Tensor) -> int:
        """The number of generated tokens.

        Raises:
            ProcessorReused: a second generation, or another prompt than the one that the processor was made for.
        """
        prompt, (rows, length) = self._prompt_ids.shape[1], input_ids.shape
        if self._length == 0:
            batch = self._prompt_ids.shape[0]
            fits = length == prompt and rows % batch == 0
            expected = self._prompt_ids.to(input_ids.device).repeat_interleave(max(rows // batch, 1), dim=0)
            if not fits or not torch.equal(input_ids, expected):
                raise ProcessorReused(
                    f"this processor was made for a prompt of shape {tuple(self._prompt_ids.shape)} and met another one of"
                    f" shape {tuple(input_ids.shape)}: build it from the very inputs that go to generate()"
                )
        elif not prompt < length <= self._length + 1:
            raise ProcessorReused(
                "this processor has served a generation already, or is shown drafts of assisted decoding: build a new one"
                " for each generate() with METHOD.processor(model, inputs), or use `with mitigate(model, METHOD)`, which"
                " tells drafts from the model's own scores"
            )
        self._length = length
        return length - prompt


class ContrastProcessor(LogitsProcessor):
    """Contrasts one generation. Made for it, and thrown away afterwards.

    Scores come back as log-probabilities: equal to the formula's under argmax and sampling, and comparable between beams.

    Args:
        contrast: the views and the formula.
        target: the model and the inputs of the generation.
        drafts: tells when assisted decoding shows draft tokens; None where nobody can tell: assisted decoding is then
            refused by name, since drafts cannot be told from a second generation.

    Raises:
        ProcessorReused: it meets a second generation, or another prompt than the one it was made for.
    """

    supports_continuous_batching = False

    def __init__(self, contrast: Contrast, target: Target, drafts: Drafts | None = None) -> None:
        self.contrast = contrast
        self._drafts = drafts
        self._prompt = target.prompt
        self._guard = PromptGuard(target.input_ids)
        self.branches: list[Branch] = [
            shared_branch(target, view.inputs(target), edited=view.edited) for view in contrast.views
        ]

    @contextmanager
    def sharing_passes(self, target: Target) -> Iterator[None]:
        """Inside the block the amateurs share the main generation's passes wherever that is possible."""
        needed = self.contrast.needed
        if needed is not None and not needed(1):
            yield
            return
        with ExitStack() as stack:
            for branch in self.branches:
                stack.enter_context(fusing(target, branch))
            yield

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._drafts is not None and self._drafts.under_way:
            return scores
        step = self._guard.check(input_ids)
        expert = scores.float()
        amateurs = self._ask(input_ids[:, self._prompt :], expert, step)
        combined = self.contrast.combine(expert, amateurs, step)
        if combined is not expert:
            # A row that the formula leaves as it is keeps its very scores
            same = (combined == expert).all(-1, keepdim=True)
            combined = torch.where(same, expert, combined.log_softmax(-1))
        return combined.to(scores.dtype)

    def _ask(self, generated: Tensor, expert: Tensor, step: int) -> list[Tensor] | None:
        """The amateurs' logits; None where they do not matter and are not at hand anyway."""
        contrast = self.contrast
        if contrast.needed is not None and not contrast.needed(step):
            return None
        if (
            contrast.decided is not None
            and not all(branch.knows(generated) for branch in self.branches)
            and bool(contrast.decided(expert, step).all())
        ):
            return None
        return [branch(generated).to(device=expert.device, dtype=torch.float32) for branch in self.branches]


class Chain(LogitsProcessor):
    """Several processors as one; without any it changes nothing, and still serves one generation only."""

    supports_continuous_batching = False

    def __init__(self, target: Target, processors: list[LogitsProcessor]) -> None:
        self.processors = processors
        self._guard = PromptGuard(target.input_ids)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._guard.check(input_ids)
        for processor in self.processors:
            scores = processor(input_ids, scores)
        return scores
