"""A Chainlit chat around a model's ``generate``, mitigated by one line.

    pip install -e '.[apps]'
    chainlit run examples/apps/chainlit_chat.py

The model inside the package takes one picture, and remembers nothing of the conversation. For a model of yours, load it
with ``AutoModelForImageTextToText`` and its processor with ``AutoProcessor``; the rest stays as it is.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import chainlit as cl
import torch
from PIL import Image
from transformers import AsyncTextIteratorStreamer

from keepsight import mitigate
from keepsight.demo.model import load

model, processor = load()
# One answer at a time: a block holds for everybody who calls the model meanwhile
writer = ThreadPoolExecutor(max_workers=1)


async def pieces(picture, question):
    """The answer, as it is written."""
    conversation = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    prompt = processor.apply_chat_template(conversation, add_generation_prompt=True)
    inputs = processor(text=prompt, images=picture.convert("RGB"), return_tensors="pt").to(model.device)
    streamer = AsyncTextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)

    def write():
        try:
            # The one line that mitigates. It was: with torch.inference_mode():
            with torch.inference_mode(), mitigate(model, "m3id:decay=0.07,cutoff=0.02"):
                model.generate(**inputs, max_new_tokens=64, streamer=streamer)
        finally:
            streamer.end()  # an error must not leave the reader waiting

    written = asyncio.get_running_loop().run_in_executor(writer, write)
    async for piece in streamer:
        yield piece
    await written  # raises what was raised in there


@cl.on_message
async def answer(message: cl.Message):
    """Answers about the picture that was uploaded last."""
    for element in message.elements:
        cl.user_session.set("picture", element.path)
    if not (path := cl.user_session.get("picture")):
        await cl.Message("Please upload a picture first.").send()
        return
    reply = cl.Message("")
    try:
        async for piece in pieces(Image.open(path), message.content):
            await reply.stream_token(piece)
    except Exception as error:
        await cl.ErrorMessage(str(error)).send()  # Chainlit itself would only log it
        raise
    await reply.send()
