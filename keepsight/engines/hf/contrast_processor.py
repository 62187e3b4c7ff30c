"""The logits processor that contrasts a model with an amateur."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from keepsight.engines.hf.assisted_decoding import drafting
from keepsight.engines.hf.branch import Branch
from keepsight.engines.hf.edit_state import alone
from keepsight.engines.hf.fused_pass import fusing
from keepsight.engines.hf.patching import editing
from keepsight.errors import ProcessorReused
from keepsight.method import Method
from keepsight.parts import Edit
from keepsight.target import Target

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class ContrastMethod(Method):
    """A method that differs from others in what its amateur sees and in one formula; subclasses give those two."""

    @property
    @abstractmethod
    def is_off(self) -> bool:
        """Whether the recipe changes nothing: scores then pass through untouched."""

    @abstractmethod
    def amateur(self, target: Target) -> dict[str, Any]:
        """The amateur's model inputs: ``input_ids`` with one row per prompt, its own mask, pictures or none."""

    @abstractmethod
    def needs_amateur(self, step: int) -> bool:
        """Whether the amateur matters once ``step`` tokens have been generated."""

    def decided(self, expert: Tensor, step: int) -> Tensor:
        """``(rows,)`` bool: where the scores come out the same whatever the amateur says, so that it need not be asked."""
        return torch.zeros(expert.shape[0], dtype=torch.bool, device=expert.device)

    @abstractmethod
    def combine(self, expert: Tensor, amateur: Tensor | None, step: int) -> Tensor:
        """New scores ``(rows, vocab)`` from float32 expert scores and amateur logits (None where not needed)."""

    @contextmanager
    def attach(self, target: Target) -> Iterator[Sequence[LogitsProcessor]]:
        processor = ContrastProcessor(self, target)
        with processor.riding_along(target):
            yield [processor]

    def processor(self, model: PreTrainedModel, inputs: Mapping[str, Any]) -> LogitsProcessor:
        """A fresh processor for one ``model.generate(**inputs, logits_processor=[…])``.

        Args:
            model: any decoder-only image-text-to-text model of transformers.
            inputs: what the model's processor returned, the same mapping that goes to ``generate``: ``input_ids``
                ``(batch, prompt)``, left-padded, with ``attention_mask`` and the image tensors.

        Raises:
            UnsupportedModel: the model lacks what the method needs.
            NoImageTokens: a prompt holds no image.
        """
        return ContrastProcessor(self, Target(model, inputs))


class ContrastProcessor(LogitsProcessor):
    """Contrasts one generation. Made by a recipe, thrown away afterwards.

    Scores come back as log-probabilities: equal to the formula's under argmax and sampling, and comparable between beams.

    Raises:
        ProcessorReused: it meets a second generation, or another prompt than the one it was made for.
    """

    supports_continuous_batching = False

    def __init__(self, method: ContrastMethod, target: Target) -> None:
        _ = target.image_mask  # raises where there is no picture, also for a recipe that is off
        self.method = method
        self._prompt_ids = target.input_ids
        self._length = 0
        self._branch: Branch | None = None
        if not method.is_off:
            self._branch = shared_branch(target, method.amateur(target))

    @contextmanager
    def riding_along(self, target: Target) -> Iterator[None]:
        """Inside the block the amateur shares the main generation's passes wherever that is possible."""
        if self._branch is None or not self.method.needs_amateur(1):
            yield
            return
        with fusing(target, self._branch):
            yield

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if drafting():
            # Any draft is right, the main model has the last word; contrasting drafts costs a full forward for each
            return scores
        self._check(input_ids)
        if self._branch is None:
            return scores
        step = input_ids.shape[1] - self._prompt_ids.shape[1]
        amateur = None
        expert = scores.float()
        generated = input_ids[:, self._prompt_ids.shape[1] :]
        if self.method.needs_amateur(step) and (
            self._branch.knows(generated) or not bool(self.method.decided(expert, step).all())
        ):
            amateur = self._branch(generated).to(device=scores.device, dtype=torch.float32)
        combined = self.method.combine(expert, amateur, step)
        if combined is not expert:
            combined = torch.where(
                (combined == expert).all(-1, keepdim=True), expert, combined.log_softmax(-1)
            )
        return combined.to(scores.dtype)

    def _check(self, input_ids: Tensor) -> None:
        prompt = self._prompt_ids.shape[1]
        length = input_ids.shape[1]
        if self._length == 0:
            rows = input_ids.shape[0]
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
                "this processor has served a generation already: build a new one for each generate() with"
                " METHOD.processor(model, inputs), or use `with mitigate(model, METHOD)`"
            )
        self._length = length


def shared_branch(target: Target, inputs: Mapping[str, Any]) -> Branch:
    """The branch of this generation that has these inputs: a method's that came before, or a new one."""
    wanted = Branch(target.model, inputs)
    for branch in target.branches:
        if branch.answers_for(wanted):
            return branch
    target.branches.append(wanted)
    return wanted


def overhear(target: Target, inputs: Mapping[str, Any], listener: Edit) -> None:
    """One pass over a prompt in which ``listener`` alone acts, for what it hears.

    Listening changes nothing, so a pass without the picture is also the prefill of whatever second opinion has the same
    prompt. One with the picture is not kept: nobody has that prompt but the main generation, and its cache is large.
    """
    branch = Branch(target.model, inputs)
    if not branch.sees and not (shared := shared_branch(target, inputs)).begun:
        branch = shared
    with editing(target, listener), alone(target.model, listener):
        branch.begin()
