"""Generates one batch of answers, and reports to every row its own tokens as they are chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from keepsight.errors import KeepsightError
from keepsight.grounding.recorder import GroundingRecorder
from keepsight.grounding.scores import Figures, joined
from keepsight.inference.collate import collate
from keepsight.inference.detokenizer import IncrementalDetokenizer
from keepsight.inference.generation import Generation, end_token_ids
from keepsight.inference.generation import generate as run_generation
from keepsight.inference.row_sampler import RowSampler
from keepsight.serve.requests import GenerationEvent, RequestState

COLDEST = 0.01
"""Temperatures below this are served as greedy search, since scores divided by them would overflow."""
LEAST = -9999.0
"""The log-probability of a token that is ruled out, as OpenAI's API writes it: JSON has no infinity."""


def generate(
    model: Any, tokenizer: Any, rows: Sequence[RequestState], *, ending: Callable[[], KeepsightError | None]
) -> None:
    """Generate the answers of ``rows``, which share methods and shapes, and send each of them its events.

    A row stops with its next token when its answer has ended or its client has left. The batch stops when all rows have.

    Args:
        model: the model. Its weights and hooks are as before when the function returns or raises.
        tokenizer: the model's tokenizer. No other thread may use it at the same time.
        rows: the requests, at least one, all with the same ``batch_key``.
        ending: called after every token. It returns the reason why everything has to end now, or None.

    Raises:
        KeepsightError: a method or the model cannot be used with these inputs. Whatever else the model raises is raised as
            well. The caller has to report the error to the rows that have not ended.
    """
    requests = [row.request for row in rows]
    ends = end_token_ids(model)
    inputs = _to(collate([request.inputs for request in requests], padding_id(model, tokenizer)), model)
    # Methods and grounding are part of the batch key, so that the first row speaks for all. Log-probabilities and sampling
    # are not: they are computed for the whole batch if any row wants them, and the other rows leave them unused
    recorder = _Recorder(model, inputs) if requests[0].grounding else None
    scores = _Scores() if any(request.top_logprobs is not None for request in requests) else None
    draw = _SampleEach(rows) if any(request.temperature >= COLDEST for request in requests) else None
    detokenizers = [
        IncrementalDetokenizer(tokenizer, ends=ends, stop=request.stop, longest=request.max_tokens)
        for request in requests
    ]
    watch = _Watch(rows, detokenizers, inputs, tokenizer, recorder, scores, ending)
    run_generation(
        model,
        inputs,
        requests[0].methods,
        # Rows draw for themselves in a processor, so that the search itself is greedy. It runs as long as the longest answer
        # may get, because the detokenizer of each row ends the row at its own bound
        generation=Generation(max_new_tokens=max(request.max_tokens for request in requests)),
        # The recorder comes first: it grounds what the model itself says, before a method contrasts it
        first=[recorder] if recorder is not None else [],
        # Scores are recorded before the draw, which leaves only the token that was drawn
        processors=[processor for processor in (scores, draw) if processor is not None],
        stopping=[watch],
    )
    watch.release()  # generate() has returned, so that the methods have left the model


def padding_id(model: Any, tokenizer: Any) -> int:
    """The id that shorter prompts of a batch are padded with. Padding is masked, so that any id of the model will do."""
    # Many language models were trained without padding, so that neither the tokenizer nor the model may have such an id
    for found in (getattr(tokenizer, "pad_token_id", None), model.generation_config.pad_token_id):
        if isinstance(found, int):
            return found
    return min(end_token_ids(model), default=0)


def _to(inputs: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """The inputs on the model's device, floating-point ones in its precision, as ``to`` of a ``BatchFeature`` moves them.

    The collated batch is a plain dictionary, which has no such method.
    """
    moved = {}
    for name, value in inputs.items():
        if isinstance(value, Tensor):
            value = value.to(model.device, dtype=model.dtype if value.is_floating_point() else None)
        moved[name] = value
    return moved


class _Recorder(GroundingRecorder):
    """A recorder that returns the figures of a token as soon as the token is chosen, and not only at the end."""

    def of(self, chosen: Tensor) -> Tensor:
        """The figures of the tokens ``chosen``, ``(rows,)``, as a tensor ``(rows, figures)`` in the order of ``Figures``."""
        return torch.stack(list(self._settled(chosen)), dim=-1)


class _Scores(LogitsProcessor):
    """Keeps the log-probabilities of the last step, ``(rows, vocabulary)``, as the methods left them."""

    supports_continuous_batching = False
    last: Tensor

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.last = scores.float().log_softmax(-1)
        return scores


class _SampleEach(LogitsProcessor):
    """Draws the next token of every row that samples, each with its own temperature and its own random stream.

    Rows that decode greedily keep their scores.
    """

    supports_continuous_batching = False

    def __init__(self, rows: Sequence[RequestState]) -> None:
        self._draws = [
            RowSampler([str(row.request.seed)], temperature=row.request.temperature, top_p=row.request.top_p)
            if row.request.temperature >= COLDEST
            else None
            for row in rows
        ]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        # Rows are sliced and not indexed, because a sampler expects a batch dimension
        return torch.cat(
            [
                scores[i : i + 1] if draw is None else draw(input_ids[i : i + 1], scores[i : i + 1])
                for i, draw in enumerate(self._draws)
            ]
        )


class _Watch(StoppingCriteria):
    """Sends every token to its row as soon as it is chosen, and tells ``generate`` which rows are done.

    ``generate`` calls stopping criteria after every token, with the tokens of all rows. A streamer would not do, because it
    cannot end a row.
    """

    def __init__(
        self,
        rows: Sequence[RequestState],
        detokenizers: Sequence[IncrementalDetokenizer],
        inputs: Mapping[str, Any],
        tokenizer: Any,
        recorder: _Recorder | None,
        scores: _Scores | None,
        ending: Callable[[], KeepsightError | None],
    ) -> None:
        self._rows, self._detokenizers, self._tokenizer = rows, detokenizers, tokenizer
        self._pairs = list(zip(rows, detokenizers, strict=True))
        # Clients get the length of their own prompt, without the padding that the batch has added to it
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
            # generate() goes on until all rows have ended, and fills ended ones with padding
            if row.finished or row.cancelled:
                continue
            if why is not None:
                row.fail(why)
                continue
            self._tell(i, row, token, None if figures is None else figures[i])
        done = [
            row.finished or row.cancelled or detokenizer.finish is not None
            for row, detokenizer in self._pairs
        ]
        return torch.tensor(done, device=input_ids.device)

    def _tell(self, i: int, row: RequestState, token: int, figures: list[float] | None) -> None:
        """Add a token to the answer of row ``i``, and report what can be sent of it now."""
        row.started = True
        detokenizer = self._detokenizers[i]
        if figures is not None:
            self._figures[i].append(figures)
        logprob, top = self._logprobs(i, row, token)
        piece = detokenizer.add(
            token, logprob=logprob, top=top, figures=None if figures is None else tuple(figures)
        )
        # The detokenizer holds text back that may be the start of a stop text, and tokens until all of their text is sent
        if detokenizer.finish is None and not (piece.text or piece.tokens):
            return
        event = GenerationEvent(
            index=row.index,
            piece=piece,
            finish=detokenizer.finish,
            prompt_tokens=int(self._prompts[i]),
            tokens=len(detokenizer.ids),
            grounding=None
            if figures is None or detokenizer.finish is None
            else joined(self._tokenizer, detokenizer.ids, _columns(self._figures[i])),
        )
        row.finished = event.last
        # The batch ends with this event. The row stays unfinished until release() sends it, so that an error that is raised
        # on the way out of the model still reaches the row
        if all(one.finished or one.cancelled for one in self._rows):
            row.finished = False
            self._kept = [(row, event)]
        else:
            row.on_event(event)

    def release(self) -> None:
        """Send the last event of the batch, which is kept back until the methods have left the model.

        Whoever receives it may use the model at once, and has to find the model as it was.
        """
        for row, event in self._kept:
            row.finished = True
            if not row.cancelled:
                row.on_event(event)

    def _logprobs(
        self, i: int, row: RequestState, token: int
    ) -> tuple[float | None, list[tuple[int, float]]]:
        """The log-probability of a token of row ``i``, and the likeliest tokens in its place with theirs.

        The result is None and an empty list if the row did not request log-probabilities.
        """
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
    """The figures of an answer by name, each a tensor ``(tokens,)``, from one sequence of figures for each token."""
    return Figures(*torch.tensor(figures, dtype=torch.float32).unbind(-1))
