"""Sampling in which every row of a batch has random numbers of its own."""

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
        keys: one for each row of the batch.
        temperature: what scores are divided by, above 0; default 1.
        top_p: the probability of the smallest set of tokens that is drawn from, in (0, 1]; default 1.
    """

    supports_continuous_batching = False

    def __init__(self, keys: Sequence[str], *, temperature: float = 1.0, top_p: float = 1.0) -> None:
        from transformers import TemperatureLogitsWarper, TopPLogitsWarper

        self._streams = [random.Random(key) for key in keys]
        self._warpers: list[Any] = []
        if temperature != 1:
            self._warpers.append(TemperatureLogitsWarper(temperature))
        if top_p < 1:
            self._warpers.append(TopPLogitsWarper(top_p))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        for warper in self._warpers:
            scores = warper(input_ids, scores)
        cumulated = scores.double().softmax(-1).cumsum(-1)
        # 52 bits: the product with a total of about 1 stays below the total
        uniform = [stream.getrandbits(_BITS) / 2**_BITS for stream in self._streams]
        below = cumulated[:, -1] * cumulated.new_tensor(uniform)
        drawn = (cumulated <= below[:, None]).sum(-1, keepdim=True)
        return scores.new_full(scores.shape, float("-inf")).scatter(-1, drawn, 0.0)
