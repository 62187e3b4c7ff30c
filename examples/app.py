"""An app that calls ``generate`` somewhere inside: one line around that call is all that changes.

python examples/app.py

``pieces`` is such an app's own code. Gradio, Streamlit and Chainlit call it from their handlers as before::

    gr.ChatInterface(handler, multimodal=True).launch()                         # Gradio

    st.write_stream(pieces(Image.open(uploaded), question))                     # Streamlit

    for piece in pieces(Image.open(message.elements[0].path), message.content): # Chainlit
        await reply.stream_token(piece)

Each thread has its own blocks on a model, but methods that act inside the model let one generation run at a time and raise
``ConcurrentUse`` in another thread. Where visitors choose methods of their own, take a lock, as here, or put
``keepsight serve`` behind the app.
"""

from __future__ import annotations

from threading import Lock, Thread

from PIL import Image
from transformers import TextIteratorStreamer

from keepsight import mitigate
from keepsight.demo.model import PROMPT, load
from keepsight.demo.world import scenes

model, processor = load()
one_at_a_time = Lock()


def pieces(picture, question, *methods):
    """The answer, piece by piece. ``methods`` are specs; none is the plain model."""
    conversation = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    prompt = processor.apply_chat_template(conversation, add_generation_prompt=True)
    inputs = processor(text=prompt, images=picture.convert("RGB"), return_tensors="pt")
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)

    def generate():
        try:
            with one_at_a_time, mitigate(model, *methods):  # was: with one_at_a_time:
                model.generate(**inputs, max_new_tokens=64, streamer=streamer)
        finally:
            streamer.end()  # an error must not leave the reader waiting

    Thread(target=generate).start()
    yield from streamer


def handler(message, history):
    """What Gradio's chat calls: the answer so far, again and again."""
    text = ""
    for piece in pieces(Image.open(message["files"][0]), message["text"], "m3id:decay=0.07,cutoff=0.02"):
        text += piece
        yield text


if __name__ == "__main__":
    import tempfile

    picture = scenes("val-shifted", 23)[22].image()
    print("plain:", "".join(pieces(picture, PROMPT)).strip())
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        picture.save(file.name)
        *_, last = handler({"text": PROMPT, "files": [file.name]}, [])
    print("M3ID: ", last.strip())
