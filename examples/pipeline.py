"""A ``pipeline`` of transformers under a method: nothing changes but the block around it.

python examples/pipeline.py
"""

from __future__ import annotations

from transformers import pipeline

from keepsight import M3ID, mitigate
from keepsight.demo.model import PROMPT, load
from keepsight.demo.world import scenes

model, processor = load()
describe = pipeline("image-text-to-text", model=model, processor=processor)
picture = scenes("val-shifted", 23)[22].image()
messages = [
    {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": PROMPT}]}
]


def ask():
    [answer] = describe(text=messages, max_new_tokens=64, return_full_text=False)
    return answer["generated_text"].strip()


print("plain:", ask())
with mitigate(describe.model, M3ID(decay=0.07, cutoff=0.02)):
    print("M3ID: ", ask())
