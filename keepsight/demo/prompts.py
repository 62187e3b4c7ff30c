"""The questions that the demo model was trained on."""

from __future__ import annotations

from keepsight.demo.model import PROMPT

PROMPTS = (PROMPT, "Please describe this image in detail.", "What is in the image?")
"""All of them ask for a caption; questions about one object, which POPE asks, are in ``world.questions``."""
