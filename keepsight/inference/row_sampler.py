"""Sampling in which every question has random numbers of its own."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_BITS = 52


class Draw:
    """A logits processor that draws the next token of each row, and leaves only that one for a greedy search to take.

    ``generate`` draws a whole batch from one stream of random numbers, so that an answer hangs on its neighbours. Here row
    ``i`` draws from a stream of ``keys[i]``: the same answer, whatever the batch, the order and the number of processes,
    and up to rounding of the scores whatever the device. Ways that draw with the same key share their luck, which makes
    their difference the sharper.

    Token = the first whose cumulated probability exceeds ``u``, uniform in [0, 1), after temperature and top-p as
    transformers applies them.

    Args:
        keys: one for each row of the batch.
        temperature: above 0.
        top_p: in (0, 1].
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
