"""The prompts that the demo model was trained to answer with a caption."""

from __future__ import annotations

from keepsight.demo.model import PROMPT

PROMPTS = (PROMPT, "Please describe this image in detail.", "What is in the image?")
"""All of them ask for a caption. Questions about one object, as POPE asks them, come from ``world.questions``."""
