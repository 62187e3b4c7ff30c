"""One batch of answers on the model: methods in place, every row watched on its own, token after token told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from keepsight.api import attached
from keepsight.errors import KeepsightError
from keepsight.grounding.recorder import GroundingRecorder
from keepsight.grounding.scores import Figures, joined
from keepsight.inference.collate import join
from keepsight.inference.detokenizer import Writer
from keepsight.inference.row_sampler import Draw
from keepsight.serve.requests import GenerationEvent, RequestState

COLDEST = 0.01
"""Temperatures below it are greedy: scores divided by them would overflow."""
LEAST = -9999.0
"""The log-probability of what is ruled out, as OpenAI writes it: JSON has no infinity."""


def generate(
    model: Any, tokenizer: Any, rows: Sequence[RequestState], *, ending: Callable[[], KeepsightError | None]
) -> None:
    """Write the answers of ``rows``, which share methods and shapes, and tell each of them what happens to it.

    A row whose answer has ended, or whom nobody listens to any more, stops at its next token, and the batch when all have.

    Args:
        ending: why everything has to end now, or None.

    Raises:
        KeepsightError, and whatever a model may raise: rows that have not ended know nothing of it yet.
    """
    asks = [row.request for row in rows]
    ends = end_marks(model)
    inputs = _to(join([ask.inputs for ask in asks], padding_id(model, tokenizer)), model)
    cuda = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), attached(model, inputs, *asks[0].methods) as processors:
        torch.manual_seed(0)  # as captioning does, should a model draw anything itself
        recorder = _Recorder(model, inputs) if asks[0].grounding else None
        scores = _Scores() if any(ask.top_logprobs is not None for ask in asks) else None
        draw = _DrawEach(rows) if any(ask.temperature >= COLDEST for ask in asks) else None
        given = [recorder, *processors, scores, draw]
        writers = [Writer(tokenizer, ends=ends, stop=ask.stop, longest=ask.max_tokens) for ask in asks]
        watch = _Watch(rows, writers, inputs, tokenizer, recorder, scores, ending)
        model.generate(
            **inputs,
            max_new_tokens=max(ask.max_tokens for ask in asks),
            do_sample=False,
            num_beams=1,
            logits_processor=[processor for processor in given if processor is not None],
            stopping_criteria=[watch],
        )
    watch.release()


def end_marks(model: Any) -> frozenset[int]:
    """The ids of the tokens that end an answer."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        return frozenset()
    return frozenset(ends if isinstance(ends, (list, tuple)) else [ends])


def padding_id(model: Any, tokenizer: Any) -> int:
    """What shorter prompts of a batch are filled up with; it is masked, so that any id will do."""
    for found in (getattr(tokenizer, "pad_token_id", None), model.generation_config.pad_token_id):
        if isinstance(found, int):
            return found
    return min(end_marks(model), default=0)


def _to(inputs: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """On the model's device; numbers of pictures in the model's precision, as the processors' own ``to`` does it."""
    moved = {}
    for name, value in inputs.items():
        if isinstance(value, Tensor):
            value = value.to(model.device, dtype=model.dtype if value.is_floating_point() else None)
        moved[name] = value
    return moved


class _Recorder(GroundingRecorder):
    """Tells the figures of a token as soon as it is chosen."""

    def of(self, chosen: Tensor) -> Tensor:
        """``(rows, figures)``."""
        return torch.stack(list(self._settled(chosen)), dim=-1)


class _Scores(LogitsProcessor):
    """Keeps the log-probabilities after all methods."""

    supports_continuous_batching = False
    last: Tensor

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.last = scores.float().log_softmax(-1)
        return scores


class _DrawEach(LogitsProcessor):
    """Draws the next token of every row that asks for it, each by its own temperature and its own stream."""

    supports_continuous_batching = False

    def __init__(self, rows: Sequence[RequestState]) -> None:
        self._draws = [
            Draw([str(row.request.seed)], temperature=row.request.temperature, top_p=row.request.top_p)
            if row.request.temperature >= COLDEST
            else None
            for row in rows
        ]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return torch.cat(
            [
                scores[i : i + 1] if draw is None else draw(input_ids[i : i + 1], scores[i : i + 1])
                for i, draw in enumerate(self._draws)
            ]
        )


class _Watch(StoppingCriteria):
    """Sees every token right after it was chosen, tells the row's listener, and says which rows are done."""

    def __init__(
        self,
        rows: Sequence[RequestState],
        writers: Sequence[Writer],
        inputs: Mapping[str, Any],
        tokenizer: Any,
        recorder: _Recorder | None,
        scores: _Scores | None,
        ending: Callable[[], KeepsightError | None],
    ) -> None:
        self._rows, self._writers, self._tokenizer = rows, writers, tokenizer
        self._pairs = list(zip(rows, writers, strict=True))
        mask = inputs.get("attention_mask")
        width = int(inputs["input_ids"].shape[1])
        self._prompts = [width] * len(rows) if mask is None else mask.sum(-1).tolist()
        self._recorder, self._scores, self._ending = recorder, scores, ending
        self._figures: list[list[list[float]]] = [[] for _ in rows]
        self._kept: list[tuple[RequestState, GenerationEvent]] = []

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        chosen = input_ids[:, -1]
        figures = None if self._recorder is None else self._recorder.of(chosen).tolist()
        why = self._ending()
        for i, token in enumerate(chosen.tolist()):
            row = self._rows[i]
            if row.finished or row.cancelled:
                continue
            if why is not None:
                row.fail(why)
                continue
            self._tell(i, row, token, None if figures is None else figures[i])
        done = [row.finished or row.cancelled or writer.finish is not None for row, writer in self._pairs]
        return torch.tensor(done, device=input_ids.device)

    def _tell(self, i: int, row: RequestState, token: int, figures: list[float] | None) -> None:
        row.started = True
        writer = self._writers[i]
        if figures is not None:
            self._figures[i].append(figures)
        logprob, top = self._logprobs(i, row, token)
        piece = writer.add(
            token, logprob=logprob, top=top, figures=None if figures is None else tuple(figures)
        )
        if writer.finish is None and not (piece.text or piece.tokens):
            return
        event = GenerationEvent(
            index=row.index,
            piece=piece,
            finish=writer.finish,
            prompt_tokens=int(self._prompts[i]),
            tokens=len(writer.ids),
            grounding=None
            if figures is None or writer.finish is None
            else joined(self._tokenizer, writer.ids, _columns(self._figures[i])),
        )
        row.finished = event.last
        if all(one.finished or one.cancelled for one in self._rows):
            row.finished = False
            self._kept = [(row, event)]
        else:
            row.on_event(event)

    def release(self) -> None:
        """Tell the last end of the batch, which is kept until the methods have left the model."""
        for row, event in self._kept:
            row.finished = True
            if not row.cancelled:
                row.on_event(event)

    def _logprobs(
        self, i: int, row: RequestState, token: int
    ) -> tuple[float | None, list[tuple[int, float]]]:
        if self._scores is None or row.request.top_logprobs is None:
            return None, []
        own = self._scores.last[i]
        values, ids = own.topk(min(row.request.top_logprobs, own.shape[-1]))
        top = [
            (int(one), max(float(value), LEAST))
            for one, value in zip(ids.tolist(), values.tolist(), strict=True)
        ]
        return max(float(own[token]), LEAST), top


def _columns(figures: Sequence[Sequence[float]]) -> Figures:
    return Figures(*torch.tensor(figures, dtype=torch.float32).unbind(-1))
