"""Errors about the prompts and pictures that model inputs are made of."""

from __future__ import annotations

from keepsight.errors import InputError


class NoChatTemplate(InputError):
    """The model's processor cannot wrap a question into a prompt."""


class BadPrompt(InputError):
    """The model's processor or its chat template refuses a prompt."""


class CannotRemoveImage(InputError):
    """It is not certain what a raw prompt would be without its picture."""
