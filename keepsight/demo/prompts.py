"""The questions that the demo model was trained on."""

from __future__ import annotations

from keepsight.demo.model import (
    PROMPT,
)

PROMPTS = (PROMPT, "Please describe this image in detail.", "What is in the image?")
