"""What an engine must offer: it takes the parts that methods are made of, and puts them in place for one generation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from keepsight.errors import UnsupportedModel

if TYPE_CHECKING:
    from transformers import LogitsProcessor

    from keepsight.method import Method
    from keepsight.parts import Part
    from keepsight.target import Target


class Engine(ABC):
    """Puts parts in place around a model that somebody else lets generate."""

    @abstractmethod
    def why_not(self, part: Part, target: Target) -> str | None:
        """Why this engine cannot put a part in place on ``target``, in a clause; None where it can."""

    @abstractmethod
    def open(
        self, target: Target, methods: Sequence[Method]
    ) -> AbstractContextManager[list[LogitsProcessor]]:
        """The methods in place for one generation on ``target``; yields the processors that belong into ``generate``.

        Raises:
            UnsupportedModel: a method, or a part of it, cannot be put in place on this model.
            NoImageTokens: a prompt holds no picture.
            ConcurrentUse: another thread is generating with edits on this very model.
        """

    @abstractmethod
    def processor(self, target: Target, method: Method) -> LogitsProcessor:
        """The method as one logits processor that needs nothing else in place.

        Raises:
            NeedsBlock: the method has a part that is no processor; the message names it.
            UnsupportedModel, NoImageTokens: as ``open``.
        """

    def parts(self, target: Target, methods: Sequence[Method]) -> list[Part]:
        """The parts of all methods in their order, each of which this engine can put in place.

        Raises:
            UnsupportedModel: a method refuses this kind of model, or this engine cannot place one of its parts.
            NoImageTokens: a prompt holds no picture.
        """
        found: list[Part] = []
        for method in methods:
            # A recipe that is off needs a picture as well: a prompt without one is a mistake that should show at once
            target.check_prompt()
            if (reason := method.refusal(target)) is not None:
                raise UnsupportedModel(f"{target.name} cannot be used with {method.name()}: {reason}")
            for part in method.parts(target):
                if (reason := self.why_not(part, target)) is not None:
                    raise UnsupportedModel(f"{target.name} cannot be used with {method.name()}: {reason}")
                found.append(part)
        return found
