"""A Gradio chat around a model's ``generate``, mitigated by one line.

    pip install -e '.[apps]'
    python examples/apps/gradio_chat.py

The model inside the package takes one picture, and remembers nothing of the conversation. For a model of yours, load it
with ``AutoModelForImageTextToText`` and its processor with ``AutoProcessor``; the rest stays as it is.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import gradio as gr
import torch
from transformers import TextIteratorStreamer

from keepsight import mitigate
from keepsight.demo.model import load

model, processor = load()
# One answer at a time: a block holds for everybody who calls the model meanwhile
writer = ThreadPoolExecutor(max_workers=1)


def pieces(picture, question):
    """The answer, as it is written."""
    conversation = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    prompt = processor.apply_chat_template(conversation, add_generation_prompt=True)
    inputs = processor(text=prompt, images=picture.convert("RGB"), return_tensors="pt").to(model.device)
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)

    def write():
        try:
            # The one line that mitigates. It was: with torch.inference_mode():
            with torch.inference_mode(), mitigate(model, "m3id:decay=0.07,cutoff=0.02"):
                model.generate(**inputs, max_new_tokens=64, streamer=streamer)
        finally:
            streamer.end()  # an error must not leave the reader waiting

    written = writer.submit(write)
    yield from streamer
    written.result()  # raises what was raised in there


def answer(question, history, picture):
    """The answer so far, again and again."""
    if picture is None:
        raise gr.Error("Please choose a picture first.")
    text = ""
    for piece in pieces(picture, question):
        text += piece
        yield text


app = gr.ChatInterface(
    answer,
    additional_inputs=[gr.Image(type="pil", label="Picture")],
    additional_inputs_accordion=gr.Accordion("Picture", open=True),
)

if __name__ == "__main__":
    app.launch(show_error=True)
