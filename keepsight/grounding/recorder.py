"""Records grounding while a model generates, by a logits processor that changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers import LogitsProcessor

from keepsight.engines.hf.branch import shared_branch
from keepsight.engines.hf.edit_state import fused_pass_of
from keepsight.engines.hf.fused_pass import fusing
from keepsight.errors import InputError, ProcessorReused
from keepsight.grounding.scores import WEIGHT, Figures, Grounding, figures, joined
from keepsight.inference.detokenizer import until_end
from keepsight.target import Target

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class NotRecorded(InputError):
    """A generation was not recorded token by token, or cannot be."""


class GroundingRecorder(LogitsProcessor):
    """Records both log-probabilities of every token that one generation chooses; scores pass through unchanged::

        recorder = GroundingRecorder(model, inputs)
        written = model.generate(**inputs, logits_processor=[recorder])
        recorder.read(written, processor)[0].words()

    It composes with methods. The recorder has to come first, so that it sees the scores of the model and not the contrasted
    ones: ``logits_processor=[recorder, *processors]`` within ``attached``, ``logits_processor=[recorder]`` within
    ``mitigate``. With contrastive methods it then records what ``ground`` gives. Methods that act inside the model (PAI,
    VAR, VHR, VSV) change the scores with the picture, and the recorder records the changed ones: for what the plain model
    thinks of their text, use ``ground``. transformers' own processors (``suppress_tokens``, ``repetition_penalty``, …) act
    before the recorder; temperature and top-p act after it.

    It records greedy search and sampling, with one row for each prompt. Beams and several sequences for a prompt are
    refused by name at the first token: ``ground`` and ``teacher_force`` give the same figures for what such a search
    returns.

    Args:
        model: the model that generates.
        inputs: the very mapping that goes to ``generate``.
        weight: the w of ``contrast``, 0 or more.
        also_drop: ids of tokens that leave the prompt together with the picture, as for ``M3ID``.
        fused: as for ``attached``; it has an effect within ``sharing_passes`` only.

    *Cost*: a second prefill of the text alone, and one more forward pass for each token, as with M3ID; where both are in
    place they share one amateur. Within ``with recorder.sharing_passes():`` it shares the model's own passes.

    Raises:
        UnsupportedModel, NoImageTokens: as for a contrastive method.
        NotRecorded: more rows than prompts, or drafts that are taken back.
        ProcessorReused: it meets a second generation, or another prompt.
    """

    # In continuous batching rows come and go, so a row would not be the same answer from one call to the next.
    supports_continuous_batching = False

    def __init__(
        self,
        model: PreTrainedModel,
        inputs: Mapping[str, Any],
        *,
        weight: float = WEIGHT,
        also_drop: tuple[int, ...] = (),
        fused: bool | Literal["auto"] = "auto",
    ) -> None:
        target = Target(model, inputs, fused=fused)
        # A prompt without a picture is refused when the recorder is made, and not in the middle of a generation.
        _ = target.image_mask
        self._prompt_ids = target.input_ids
        self._ends = model.generation_config.eos_token_id
        self._weight = weight
        self._target = target
        self._branch = shared_branch(target, target.without_image(also_drop=also_drop))
        self._recorded: Tensor | None = None
        self._pending: tuple[Tensor, Tensor] | None = None
        self._figures: list[Figures] = []

    @contextmanager
    def sharing_passes(self) -> Iterator[None]:
        """Open a block for ``generate`` in which the amateur without the picture shares the model's passes where it can."""
        with fusing(self._target, self._branch):
            yield

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._check(input_ids)
        if self._recorded is None and (fused := fused_pass_of(self._target.model)) is not None:
            # A method of the same generation may have the same amateur, whose passes then serve both.
            self._branch = fused.alike(self._branch)
        generated = input_ids[:, self._prompt_ids.shape[1] :]
        # A processor is called before a token is chosen. The figures of a token can therefore be computed at the
        # next call only, when the ids say which token it was; those of the last token wait for ``rows``.
        if self._pending is not None:
            self._figures.append(self._settled(generated[:, -1]))
        self._recorded = generated
        # ``log_softmax`` makes a copy, which is needed since a later processor may write into these scores.
        self._pending = scores.float().log_softmax(-1), self._branch(generated)
        return scores

    def read(self, written: Any, processor: Any) -> list[Grounding]:
        """Returns the grounding of each row, up to its end mark, which is included.

        Args:
            written: what ``generate`` returned: ids, or an output object with ``sequences``.
            processor: the model's processor, with a ``tokenizer``.

        Raises:
            NotRecorded: nothing was generated yet, or ``written`` is another generation's.
        """
        return [joined(processor.tokenizer, ids, found) for ids, found in self.rows(written)]

    def rows(self, written: Any) -> list[tuple[list[int], Figures]]:
        """Returns for each row its token ids up to the end mark, and their figures.

        Raises:
            NotRecorded: as for ``read``.
        """
        sequences: Tensor = getattr(written, "sequences", written)
        generated = sequences[:, self._prompt_ids.shape[1] :]
        if self._recorded is None or self._pending is None:
            raise NotRecorded("nothing was recorded: pass the recorder to generate() as a logits processor")
        recorded = self._recorded.to(generated.device)
        # The last call of the recorder came before the last token, so
        # the result is one token longer than what was recorded.
        if generated.shape != (recorded.shape[0], recorded.shape[1] + 1) or not torch.equal(
            generated[:, :-1], recorded
        ):
            raise NotRecorded(
                "these are not the tokens that were recorded: pass what this very generate() returned"
            )
        steps = [*self._figures, self._settled(generated[:, -1])]
        columns = [torch.stack(column, dim=1) for column in zip(*steps, strict=True)]
        found = []
        for row, tokens in enumerate(generated.tolist()):
            ids = until_end(tokens, self._ends)
            found.append((ids, Figures(*(column[row, : len(ids)] for column in columns))))
        return found

    def _settled(self, chosen: Tensor) -> Figures:
        """Returns the figures of the tokens ``(rows,)`` that were chosen from the scores of the last call."""
        assert self._pending is not None
        expert, amateur = self._pending
        return figures(expert, amateur, chosen, weight=self._weight)

    def _check(self, input_ids: Tensor) -> None:
        """Raises unless this call continues the one generation that is recorded, by one token for each row."""
        rows, length = input_ids.shape
        prompts, prompt = self._prompt_ids.shape
        if rows != prompts:
            raise NotRecorded(
                f"{rows} rows for {prompts} prompts: beams and several sequences are not recorded; give the finished"
                " texts to keepsight.ground"
            )
        ids = self._prompt_ids.to(input_ids.device)
        if self._recorded is None:
            if not torch.equal(input_ids, ids):
                raise ProcessorReused(
                    f"this recorder was made for a prompt of shape {tuple(ids.shape)} and met another one of shape"
                    f" {tuple(input_ids.shape)}: build it from the very inputs that go to generate()"
                )
        # A second call with nothing but the prompt is either the beginning
        # of another generation or a check of drafted tokens.
        elif length == prompt:
            raise ProcessorReused(
                "this recorder has served a generation already, or is shown drafts of assisted generation, which is not"
                " recorded: build one for each generate()"
            )
        elif length != prompt + self._recorded.shape[1] + 1 or not torch.equal(
            input_ids[:, prompt:-1], self._recorded.to(input_ids.device)
        ):
            raise NotRecorded(
                "drafted tokens were taken back: assisted generation is not recorded; give the finished text to"
                " keepsight.ground"
            )
