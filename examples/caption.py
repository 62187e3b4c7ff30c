"""The two ways to use a method, in plain transformers code.

    python examples/caption.py

The program takes the model inside the package and a drawn picture. Load a model of yours with
``AutoModelForImageTextToText``, and its processor with ``AutoProcessor``; the rest stays as it is.
"""

from __future__ import annotations

from keepsight import M3ID, mitigate
from keepsight.demo.model import PROMPT, load
from keepsight.demo.world import scenes

model, processor = load()
# This scene was picked because the method helps here; `keepsight demo` shows the average
scene = scenes("val-shifted", 23)[22]
conversation = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]
prompt = processor.apply_chat_template(conversation, add_generation_prompt=True)
inputs = processor(text=prompt, images=scene.image(), return_tensors="pt")
method = M3ID(decay=0.07, cutoff=0.02)


def read(ids):
    return processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


print("in the picture:", ", ".join(scene.names))
print("greedy:        ", read(model.generate(**inputs, max_new_tokens=64)))

# A processor for one generation, beside whatever else goes to generate()
mitigated = model.generate(**inputs, max_new_tokens=64, logits_processor=[method.processor(model, inputs)])
print("M3ID:          ", read(mitigated))

# Every generate() inside a block is mitigated; the code that calls it stays as it is
with mitigate(model, method):
    print("M3ID, in block:", read(model.generate(**inputs, max_new_tokens=64)))
