"""Mitigated text, printed while it is written: streaming works inside ``mitigate`` as everywhere else.

python examples/stream.py
"""

from __future__ import annotations

from threading import Thread

from transformers import TextIteratorStreamer

from keepsight import M3ID, mitigate
from keepsight.demo.model import PROMPT, load
from keepsight.demo.world import scenes

model, processor = load()
conversation = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]
prompt = processor.apply_chat_template(conversation, add_generation_prompt=True)
inputs = processor(text=prompt, images=scenes("val-shifted", 23)[22].image(), return_tensors="pt")

streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
with mitigate(model, M3ID(decay=0.07, cutoff=0.02)):
    # The thread has no block of its own, so that its generate() uses this one
    writer = Thread(target=model.generate, kwargs={**inputs, "max_new_tokens": 64, "streamer": streamer})
    writer.start()
    for piece in streamer:
        print(piece, end="", flush=True)
    writer.join()
print()
