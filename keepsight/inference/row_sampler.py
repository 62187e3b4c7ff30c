"""``RowSampler`` samples with random numbers of its own for every row of a batch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_BITS = 52
"""Bits of a random number: a float64 holds them exactly, so that the number stays below 1."""


class RowSampler:
    """A logits processor that draws the next token of each row, and leaves only that one for a greedy search to take.

    transformers draws a whole batch from one stream of random numbers, so that an answer depends on the rows beside it.
    Here row ``i`` draws from a stream that ``keys[i]`` seeds. Its answer is the same whatever the batch, the order and the
    number of processes are, and up to rounding of the scores on every device. Methods that are compared with the same keys
    draw with the same random numbers, which makes their difference more precise.

    The token drawn is the first whose cumulated probability exceeds ``u``, uniform in [0, 1), after temperature and top-p
    as transformers applies them.

    Args:
        keys: the seeds, one for each row of the batch.
        temperature: what scores are divided by, above 0; default 1.
        top_p: the probability of the smallest set of tokens that is drawn from, in (0, 1]; default 1.
    """

    # In continuous batching rows come and go, while a stream of random numbers belongs to one row of a fixed batch.
    supports_continuous_batching = False

    def __init__(self, keys: Sequence[str], *, temperature: float = 1.0, top_p: float = 1.0) -> None:
        from transformers import TemperatureLogitsWarper, TopPLogitsWarper

        # Python's own generator draws on the CPU, whatever device the scores are on, so its numbers are the same.
        self._streams = [random.Random(key) for key in keys]
        self._warpers: list[Any] = []
        # Temperature comes before top-p, as in transformers: it changes which tokens make up the smallest set.
        if temperature != 1:
            self._warpers.append(TemperatureLogitsWarper(temperature))
        if top_p < 1:
            self._warpers.append(TopPLogitsWarper(top_p))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        for warper in self._warpers:
            scores = warper(input_ids, scores)
        # In double precision, so the sum over a large vocabulary loses no unlikely token to rounding.
        cumulated = scores.double().softmax(-1).cumsum(-1)
        # The total may differ from 1 by rounding, so the random number is scaled to it. With 52 bits the product stays
        # below the total, so there always is a token to draw.
        uniform = [stream.getrandbits(_BITS) / 2**_BITS for stream in self._streams]
        below = cumulated[:, -1] * cumulated.new_tensor(uniform)
        drawn = (cumulated <= below[:, None]).sum(-1, keepdim=True)
        # Greedy search then takes the token that is left. Sampling by
        # ``generate`` itself would draw from the shared stream again.
        return scores.new_full(scores.shape, float("-inf")).scatter(-1, drawn, 0.0)
