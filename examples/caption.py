"""Both doors to a method, in plain transformers code.

    python examples/caption.py

Runs on the model inside the package and a drawn picture. For a model of yours, load it with
``AutoModelForImageTextToText`` and its processor with ``AutoProcessor``; the rest stays as it is.
"""

from __future__ import annotations

from keepsight import M3ID, mitigate
from keepsight.demo.model import PROMPT, load
from keepsight.demo.world import scenes

model, processor = load()
scene = scenes("val-shifted", 23)[
    22
]  # picked because the method helps here; `keepsight demo` shows the average
conversation = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]
prompt = processor.apply_chat_template(conversation, add_generation_prompt=True)
inputs = processor(text=prompt, images=scene.image(), return_tensors="pt")
method = M3ID(decay=0.07, cutoff=0.02)


def read(ids):
    return processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


print("in the picture:", ", ".join(scene.names))
print("greedy:        ", read(model.generate(**inputs, max_new_tokens=64)))

# Door 1: a processor for one generation, beside whatever else goes to generate()
mitigated = model.generate(**inputs, max_new_tokens=64, logits_processor=[method.processor(model, inputs)])
print("M3ID:          ", read(mitigated))

# Door 2: every generate() inside the block is mitigated; the code that calls it stays as it is
with mitigate(model, method):
    print("M3ID, in block:", read(model.generate(**inputs, max_new_tokens=64)))
