"""A Streamlit chat around a model's ``generate``, mitigated by one line.

    pip install -e '.[apps]'
    streamlit run examples/apps/streamlit_chat.py

The model inside the package takes one picture, and remembers nothing of the conversation. For a model of yours, load it
with ``AutoModelForImageTextToText`` and its processor with ``AutoProcessor``; the rest stays as it is.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import streamlit as st
import torch
from PIL import Image
from transformers import TextIteratorStreamer

from keepsight import mitigate
from keepsight.demo.model import load


@st.cache_resource
def loaded():
    """The model, and the thread that writes. Streamlit runs this file anew for each question; visitors share these."""
    # One answer at a time: a block holds for everybody who calls the model meanwhile
    return *load(), ThreadPoolExecutor(max_workers=1)


model, processor, writer = loaded()


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


uploaded = st.file_uploader("Picture", type=["png", "jpg", "jpeg", "webp"])
if uploaded:
    st.image(uploaded)

turns = st.session_state.setdefault("turns", [])
for role, text in turns:
    st.chat_message(role).write(text)
if question := st.chat_input("Ask about the picture", disabled=uploaded is None):
    st.chat_message("user").write(question)
    answer = st.chat_message("assistant").write_stream(pieces(Image.open(uploaded), question))
    turns += [("user", question), ("assistant", answer)]
