"""vLLM's own OpenAI server, started with its own flags, and the plain client of OpenAI."""

from __future__ import annotations

import base64
import io
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from inside_vllm import SETTINGS, SPECS, TOKENS, pictures, wanted

from keepsight.demo.model import EOS, PROMPT, checkpoint

pytestmark = pytest.mark.vllm
REQUESTS, AT_ONCE = 48, 24
ASKED = [None, SPECS["m3id"], SPECS["vcd"]]


@pytest.fixture(scope="module")
def address(demo64: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, **SETTINGS, "VLLM_USE_V2_MODEL_RUNNER": "0"}
    del environment["VLLM_ENABLE_V1_MULTIPROCESSING"]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [
        sys.executable, "-m", "keepsight", "serve", str(demo64), "--engine", "vllm", "--host", "127.0.0.1",
        "--port", str(port), "--name", "demo", "--dtype", "float32", "--method", SPECS["m3id"], "--method", SPECS["vcd"],
        "--", "--enforce-eager", "--max-num-seqs", "32", "--max-model-len", "512",
    ]  # fmt: skip
    with log.open("w") as out:
        server = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        _wait(server, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
        assert server.poll() is None, log.read_text()[-3000:]
    finally:
        server.terminate()
        server.wait(60)


def _wait(server: Any, url: str, log: Path) -> None:
    """Until the server answers; a server that ends says why."""
    while True:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)


@pytest.fixture(scope="module")
def client(address: str) -> Any:
    from openai import OpenAI

    return OpenAI(base_url=address, api_key="none", max_retries=0, timeout=120)


def data_uri(image: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def message(image: Any | None) -> list[dict[str, Any]]:
    seen = [] if image is None else [{"type": "image_url", "image_url": {"url": data_uri(image)}}]
    return [{"role": "user", "content": [*seen, {"type": "text", "text": PROMPT}]}]


def create(client: Any, image: Any | None, spec: str | None, **options: Any) -> Any:
    # The template writes no <s>, and vLLM's chat adds none unless it is told to
    extra: dict[str, Any] = {"add_special_tokens": True}
    if spec is not None:
        extra["vllm_xargs"] = {"keepsight": spec}
    settings = {"model": "demo", "temperature": 0, "max_tokens": TOKENS, **options}
    return client.chat.completions.create(messages=message(image), extra_body=extra, **settings)


def text(index: int, spec: str | None) -> str:
    from transformers import AutoTokenizer

    tokens = [token for token in wanted(spec)[index] if token != EOS]
    return str(AutoTokenizer.from_pretrained(checkpoint()).decode(tokens)).strip()


def test_methods_are_model_names(client: Any) -> None:
    names = ["demo", *(f"demo:{SPECS[name]}" for name in ("m3id", "vcd"))]
    assert [model.id for model in client.models.list().data] == names

    def one(index: int) -> str:
        found = create(client, pictures()[index], None, model=names[index % 3])
        return str(found.choices[0].message.content).strip()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        assert list(pool.map(one, range(REQUESTS))) == [text(i, ASKED[i % 3]) for i in range(REQUESTS)]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_many_requests_at_once(client: Any, stream: bool) -> None:
    def one(index: int) -> str:
        found = create(client, pictures()[index], ASKED[index % 3], stream=stream)
        if stream:
            return "".join(chunk.choices[0].delta.content or "" for chunk in found).strip()
        return str(found.choices[0].message.content).strip()

    answers = [text(index, ASKED[index % 3]) for index in range(REQUESTS)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        assert list(pool.map(one, range(REQUESTS))) == answers


def test_wrong_requests_are_told_why(client: Any) -> None:
    from openai import BadRequestError

    for spec, options, words in (
        ("m3id:bogus=1", {}, "no parameter 'bogus'"),
        ("vhr", {}, "vhr cannot be used inside vLLM"),
        ("os.path:join", {}, "not a registered method"),
        ("m3id", {"presence_penalty": 1.0}, "presence_penalty cannot be used"),
    ):
        with pytest.raises(BadRequestError, match=words):
            create(client, None, spec, **options)


def test_requests_that_fail_in_the_engine_fail_alone(client: Any) -> None:
    from openai import APIStatusError

    with pytest.raises(APIStatusError) as told:
        create(client, None, "m3id")
    assert told.value.status_code == 500
    found = create(client, pictures()[1], SPECS["m3id"])
    assert str(found.choices[0].message.content).strip() == text(1, SPECS["m3id"])


def test_clients_that_hang_up_leave_nothing(client: Any, address: str) -> None:
    for index in range(8):
        stream = create(client, pictures()[index], SPECS["vcd"], stream=True, max_tokens=300)
        next(iter(stream))
        stream.close()
    while _running(address):
        time.sleep(0.1)
    found = create(client, pictures()[2], SPECS["vcd"])
    assert str(found.choices[0].message.content).strip() == text(2, SPECS["vcd"])


def _running(address: str) -> float:
    """How many requests run or wait, as the server counts them; amateurs count as well."""
    page = urllib.request.urlopen(address.replace("/v1", "/metrics"), timeout=10).read().decode()
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting{")
    return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith(names))


def test_usage_counts_the_clients_own_tokens(client: Any) -> None:
    plain, with_method = (create(client, pictures()[3], spec, max_tokens=5) for spec in (None, SPECS["vcd"]))
    assert with_method.usage.prompt_tokens == plain.usage.prompt_tokens
    assert with_method.usage.completion_tokens == 5


@pytest.mark.parametrize(
    ("index", "spec", "options"),
    [(126, "m3di", {}), (127, None, {"logit_bias": {"999999": 1.0}})],
    ids=["by us", "by vLLM"],
)
def test_after_a_refusal_the_same_picture_may_fail_once(
    client: Any, index: int, spec: str | None, options: dict[str, Any]
) -> None:
    """vLLM reads a picture before it checks what else is asked, and then believes that its engine has it.

    So it is with vLLM's own refusals as well. The next request with that picture may fail once, and is answered when it is
    sent again, as the official client does by itself.
    """
    from openai import BadRequestError, InternalServerError

    image = pictures()[index]
    with pytest.raises(BadRequestError):
        create(client, image, spec, **options)
    for attempt in range(2):
        try:
            found = create(client, image, SPECS["m3id"])
        except InternalServerError:
            assert attempt == 0, "it may fail once"
        else:
            break
    assert str(found.choices[0].message.content).strip() == text(index, SPECS["m3id"])
