from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from serving import GUARD, ForwardGate, painted
from standin import standin

from keepsight.engines.hf.edit_state import STATES
from keepsight.serve import http_protocol, request_body
from keepsight.serve.prompts import ChatMessage, prepare_chat


@pytest.fixture(scope="session")
def loaded() -> tuple[Any, Any]:
    model, processor = standin()
    model.generation_config.suppress_tokens += [2]  # no answer ends before its length
    inputs = prepare_chat(processor, [ChatMessage("user", (painted(0), "a cat"))])
    model.generate(
        **inputs, max_new_tokens=1
    )  # transformers lays hooks of its own at the first use, and leaves them
    return model, processor


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No request of a test is too late because the machine is busy; tests of the time limits set their own."""
    monkeypatch.setattr(http_protocol, "HEADER_SECONDS", 10 * GUARD)
    monkeypatch.setattr(request_body, "BODY_SECONDS", 10 * GUARD)


@pytest.fixture
def gate(loaded: tuple[Any, Any]) -> Iterator[ForwardGate]:
    """In front of every forward pass of the decoder."""
    gate = ForwardGate()
    handle = loaded[0].get_decoder().register_forward_pre_hook(gate)
    yield gate
    gate.open.set()
    handle.remove()


@pytest.fixture(scope="session")
def fingerprint() -> Callable[[Any], Any]:
    """What of a model a method could leave behind."""

    def look(model: Any) -> Any:
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
        attention = model.config.get_text_config()._attn_implementation
        return hooks, attention, len(STATES), sorted(vars(model)), sorted(vars(model.get_decoder()))

    return look
