"""Grounding of a text that is already written: one pass over it with the picture and one without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from keepsight.engines.hf.branch import Branch
from keepsight.engines.hf.edit_state import isolated_edits
from keepsight.engines.hf.patching import preserving_rope_deltas
from keepsight.errors import InputError
from keepsight.grounding.alignment import answer_ids
from keepsight.grounding.scores import WEIGHT, Figures, Grounding, figures, joined
from keepsight.source.prompts import prepare
from keepsight.target import Target

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedModel


class _Reader(Branch):
    """Reads a whole answer in one pass after its prompt, with the picture or without it."""

    @torch.no_grad()
    def predictions(self, answers: Tensor) -> Tensor:
        """Returns the logits ``(rows, n, vocab)`` that predict each token of ``answers`` ``(rows, n)``."""
        # Edits are set aside, so the plain model is asked also inside a block of methods.
        with preserving_rope_deltas(self.model), isolated_edits(self.model):
            self._prefill(answers[:, :0])
            assert self._last is not None
            # The prompt's last row predicts the first token, and each token but the last predicts the one after it.
            fed = answers[:, :-1]
            if fed.shape[1] == 0:
                return self._last[:, None]
            kwargs = self._grown(self._kwargs, fed.shape[1])
            # The prefill asks for the logits of its last row alone; of the answer all rows are needed.
            kwargs.pop("logits_to_keep", None)
            prepared = self.model.prepare_inputs_for_generation(
                torch.cat([self._prompt, fed], dim=1), next_sequence_length=fed.shape[1], **kwargs
            )
            rest: Tensor = self.model(**prepared, return_dict=True).logits
        return torch.cat([self._last[:, None], rest], dim=1)


def teacher_force(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    answers: Sequence[Sequence[int]],
    *,
    weights: Sequence[float] = (WEIGHT,),
    also_drop: tuple[int, ...] = (),
) -> list[list[Figures]]:
    """Returns the figures of given answers: for each row of the batch and each weight, those of all tokens of its answer.

    The plain model is asked, also inside a ``mitigate`` block. *Cost*: two prefills, one of them without the picture, and
    one pass over the answers after each; ``2 · rows · tokens · vocabulary`` logits are held at a time.

    Args:
        model: the model whose probabilities are asked for.
        inputs: what the model's processor returned, left-padded.
        answers: token ids for each row, of any lengths from 1 on, end marks included or not.
        weights: values of w in ``contrast``, each 0 or more; default: the one that ``WEIGHT`` names.
        also_drop: as for ``M3ID``: ids of tokens that must leave the prompt together with the picture.

    Raises:
        UnsupportedModel, NoImageTokens: as for a contrastive method.
        InputError: an answer is empty, or there is not one for each row.
    """
    target = Target(model, inputs)
    _ = target.image_mask
    if len(answers) != target.batch or not all(answers):
        raise InputError(
            f"{target.batch} prompts need as many answers of at least one token, not"
            f" {[len(answer) for answer in answers]}"
        )
    longest = max(map(len, answers))
    # Shorter answers are filled up with any token: what follows an answer does not change the figures of its tokens.
    rows = [[*answer, *[answer[-1]] * (longest - len(answer))] for answer in answers]
    ids = torch.tensor(rows, device=target.input_ids.device)
    expert = _Reader(model, target.model_inputs).predictions(ids)
    amateur = _Reader(model, target.without_image(also_drop=also_drop)).predictions(ids)
    return [
        [
            # Several weights cost no further pass, since only the arithmetic on the logits depends on them.
            figures(expert[row, :length], amateur[row, :length], ids[row, :length], weight=weight)
            for weight in weights
        ]
        for row, length in enumerate(map(len, answers))
    ]


def ground(
    model: PreTrainedModel,
    processor: Any,
    picture: Image,
    prompt: str,
    answer: str,
    *,
    raw: bool = False,
    weight: float = WEIGHT,
    also_drop: tuple[int, ...] = (),
) -> Grounding:
    """Returns the grounding of a text about a picture, whoever wrote it: one pass with the picture and one without.

    Args:
        model: the model whose probabilities are asked for.
        processor: its processor.
        picture: the picture that the text is about.
        prompt: the question; the processor's chat template makes the prompt of it, unless it is ``raw``.
        answer: the text to judge.
        raw: take ``prompt`` as the whole prompt, placeholder of the picture included.
        weight: the w of ``contrast``, 0 or more.
        also_drop: as for ``teacher_force``, which also says what it costs.

    The tokenizer decides how the text is split into tokens; the model that wrote it may have split words in another way.

    Raises:
        UnsupportedModel, NoImageTokens: as for a contrastive method.
        NoChatTemplate, BadPrompt: as for ``keepsight.source.prompts.prepare``.
        InputError: the answer is empty.
        CannotTokenize: the tokenizer cannot write the answer.
    """
    inputs = prepare(processor, [picture], prompt, raw=raw).to(model.device, dtype=model.dtype)
    ids = answer_ids(processor, prompt, answer, raw=raw)
    [[found]] = teacher_force(model, inputs, [ids], weights=(weight,), also_drop=also_drop)
    return joined(processor.tokenizer, ids, found)


def judge(model: Any, processor: Any, inputs: Any, ids: Sequence[int]) -> Grounding:
    """Returns what the plain model thinks of an answer, whichever methods wrote it: see ``teacher_force``.

    The figures are those of ``GroundingRecorder`` on the plain model, at the price of two more prefills instead of one more
    forward pass for each token.

    Args:
        model: the model whose probabilities are asked for.
        processor: its processor, with a ``tokenizer``.
        inputs: what the processor returned for one prompt with its picture.
        ids: the tokens of the answer.
    """
    [[figures]] = teacher_force(model, inputs, [ids])
    return joined(processor.tokenizer, ids, figures)
