"""Asks example apps through their own libraries; a process of its own, so that these libraries' threads, loops and
warnings stay out of the suite.

python tests/driven_apps.py LIBRARY PICTURE APP... < questions.json     # a list of answers per app, as JSON
"""

from __future__ import annotations

import asyncio
import json
import os
import runpy
import sys
import tempfile
from pathlib import Path


def gradio(app: Path, picture: Path, questions: list[str]) -> list[str]:
    """Over HTTP, as a browser would."""
    from gradio_client import Client, handle_file

    chat = runpy.run_path(str(app))["app"]
    _, address, _ = chat.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    try:
        client = Client(address, verbose=False)
        shown = handle_file(str(picture))
        return [client.predict(question, shown, api_name="/answer") for question in questions]
    finally:
        chat.close(verbose=False)


def streamlit(app: Path, picture: Path, questions: list[str]) -> list[str]:
    """With the tester that Streamlit carries: all but the browser."""
    from streamlit.testing.v1 import AppTest

    page = AppTest.from_file(str(app), default_timeout=60).run()
    page.file_uploader[0].upload(picture.name, picture.read_bytes(), "image/png").run()
    for question in questions:
        page.chat_input[0].set_value(question).run()
    if page.exception:
        raise RuntimeError(page.exception[0].value)
    shown = [(message.name, message.markdown[0].value) for message in page.chat_message]
    if [text for who, text in shown if who == "user"] != questions:
        raise RuntimeError(f"the page does not show what was asked: {shown}")
    return [text for who, text in shown if who == "assistant"]


def chainlit(app: Path, picture: Path, questions: list[str]) -> list[str]:
    """In a session of Chainlit without a browser: it calls the handler that the app gave it."""
    import chainlit as cl
    from chainlit.config import config
    from chainlit.context import init_http_context

    async def talk() -> list[str]:
        init_http_context()
        for number, question in enumerate(questions):
            uploads = [] if number else [cl.Image(path=str(picture), name=picture.name)]
            await config.code.on_message(cl.Message(question, type="user_message", elements=uploads))
        return [message.content for message in cl.chat_context.get()]

    runpy.run_path(str(app))
    return asyncio.run(talk())


if __name__ == "__main__":
    library, picture, *apps = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        # Nothing is reported to the libraries' makers, and what they write is gone afterwards
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["STREAMLIT_BROWSER_GATHER_USAGE_STATS"] = "false"
        os.environ["GRADIO_TEMP_DIR"] = os.environ["CHAINLIT_APP_ROOT"] = folder
        asks = {"gradio": gradio, "streamlit": streamlit, "chainlit": chainlit}[library]
        questions = json.load(sys.stdin)
        answers = [asks(Path(app).resolve(), Path(picture), questions) for app in apps]
    print(json.dumps(answers))
