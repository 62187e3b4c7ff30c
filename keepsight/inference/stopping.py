"""A word that ends a generation early, from another thread."""

from __future__ import annotations

from threading import Event
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria


class Until(StoppingCriteria):
    """Ends every row with the token that is being written once ``stop`` is set."""

    def __init__(self, stop: Event) -> None:
        self.stop = stop

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full(
            (input_ids.shape[0],), self.stop.is_set(), dtype=torch.bool, device=input_ids.device
        )
