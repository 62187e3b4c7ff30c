"""What the server does under load: answers a second beside transformers' own server, and memory and hooks over time.

    python benchmarks/serve.py --json benchmarks/results/serve.json
    python benchmarks/serve.py --rounds 0 --minutes 30

Throughput: 8 clients, each asking about one drawn picture after another (greedy, not streamed), of servers in processes of
their own, in turns: a round asks each for some seconds. Soak: everything at once on one server in this process, clients in
another: streams, several choices, methods, grounding, clients that hang up, pictures and requests that are refused.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

CLIENTS = 8
MAX_TOKENS = 64
METHODS = ("", "sla", "vhr", "vsv", "pai:gamma=1", "m3id", "vcd", "pai")
"""The methods that answers are asked for; the empty one is the plain model."""
SECOND_BRANCH = ("m3id", "vcd", "pai")
"""Those of them that run an amateur at every step."""
PICTURES = 32


def questions() -> list[list[dict[str, Any]]]:
    """Returns the messages of one question about each of some drawn pictures, which travel as data URLs."""
    from keepsight.demo.model import PROMPT
    from keepsight.demo.world import scenes

    found = []
    for scene in scenes("test", PICTURES):
        buffer = io.BytesIO()
        scene.image().save(buffer, "PNG")
        uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        parts = [{"type": "text", "text": PROMPT}, {"type": "image_url", "image_url": {"url": uri}}]
        found.append([{"role": "user", "content": parts}])
    return found


def post(port: int, body: bytes, *, read: bool = True) -> tuple[int, bytes]:
    """Returns status and body of a chat request. Without ``read`` the connection is cut right after the first bytes, as a
    client does that hangs up."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read() if read else response.read(20)
    finally:
        connection.close()


def free_port() -> int:
    """Returns a port that no program listens at: the system chooses one for port 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(*command: str) -> Iterator[int]:
    """Start a server in a process of its own, and yield its port once something listens there."""
    port = free_port()
    process = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        # A server loads its model before it listens, which takes seconds. One that has ended will never listen.
        for _ in range(600):
            if process.poll() is not None:
                sys.exit(f"{' '.join(command)} ended with {process.returncode}")
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
            except OSError:
                time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        process.wait(60)


def ask_for(seconds: float, port: int, model: str, asked: list[Any], more: dict[str, Any]) -> dict[str, Any]:
    """Returns answers and tokens a second, and latencies, of ``CLIENTS`` clients that never pause.

    Args:
        seconds: for how long the clients begin requests; those under way are waited for.
        port: where the server listens.
        model: the name of the model in the requests.
        asked: the messages of each question.
        more: further entries of each request.
    """
    bodies = [
        json.dumps({"model": model, "messages": question, "max_tokens": MAX_TOKENS} | more).encode()
        for question in asked
    ]
    latencies: list[float] = []
    tokens: list[int] = []
    # Bodies are made before the clock starts, since encoding pictures is no work of the server.
    begun = time.monotonic()
    end = begun + seconds

    def client(first: int) -> None:
        at = first
        while time.monotonic() < end:
            start = time.monotonic()
            status, content = post(port, bodies[at % len(bodies)])
            if status != 200:
                sys.exit(f"status {status}: {content[:300]!r}")
            latencies.append(time.monotonic() - start)
            tokens.append(json.loads(content)["usage"]["completion_tokens"])
            # Clients take turns with the questions, so no two ask the same one at the same time.
            at += CLIENTS

    together(client)
    # The rate counts until the last answer, and not until the last request that was begun in time.
    passed = time.monotonic() - begun
    return {
        "answers_per_second": len(latencies) / passed,
        "tokens_per_second": sum(tokens) / passed,
        "latencies": latencies,
    }


def together(work: Callable[[int], None]) -> None:
    """Run a function in ``CLIENTS`` threads at once, with the number of each, and wait for all of them."""
    threads = [threading.Thread(target=work, args=(i,)) for i in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def throughput(rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Returns the throughput of transformers' server and of ours, plain and under each method, measured in turns."""
    from keepsight.demo.model import checkpoint

    asked = questions()
    weights = str(checkpoint())
    tool = Path(sys.executable).parent
    specs = [part for method in METHODS if method for part in ("--method", method)]
    with ExitStack() as stack:
        plain = stack.enter_context(
            server(str(tool / "transformers"), "serve", weights, "--dtype", "float32", "--device", "cpu")
        )
        ours = stack.enter_context(server(str(tool / "keepsight"), "serve", "demo", *specs))
        single = stack.enter_context(
            server(str(tool / "keepsight"), "serve", "demo", "--max-batch", "1", *specs)
        )
        ways: dict[str, tuple[int, str, dict[str, Any]]] = {
            "transformers serve": (plain, weights, {"temperature": 0.0}),
            "keepsight serve, one at a time": (single, "demo", {}),
        }
        for method in METHODS:
            ways[f"keepsight serve {method}".strip()] = (ours, f"demo:{method}".strip(":"), {})
        measured: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
        for port, model, more in ways.values():
            # The first requests set up what a server keeps, and are not measured.
            ask_for(1.0, port, model, asked, more)
        for number in range(rounds):
            for name, (port, model, more) in ways.items():
                measured[name].append(ask_for(seconds, port, model, asked, more))
                print(
                    f"round {number + 1}: {name}: {measured[name][-1]['answers_per_second']:.2f}/s",
                    flush=True,
                )
    return [summary(name, found, measured["transformers serve"]) for name, found in measured.items()]


def summary(name: str, found: list[dict[str, Any]], plain: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the figures of one server over all rounds, and its rate over that of transformers' server."""
    latencies = sorted(value for one in found for value in one["latencies"])
    # Rates are compared round by round, since a machine that is busy for a while is busy for both servers.
    times = [a["answers_per_second"] / b["answers_per_second"] for a, b in zip(found, plain, strict=True)]
    rates = [one["answers_per_second"] for one in found]
    return {
        "server": name,
        "answers": len(latencies),
        "answers_per_second": statistics.median(rates),
        "answers_per_second_range": [min(rates), max(rates)],
        "tokens_per_second": statistics.median(one["tokens_per_second"] for one in found),
        "latency_median": statistics.median(latencies),
        "latency_p95": latencies[int(0.95 * (len(latencies) - 1))],
        "times_transformers_serve": statistics.median(times),
        "times_transformers_serve_range": [min(times), max(times)],
    }


def mixed(port: int, seconds: float) -> dict[str, int]:
    """Ask for some seconds as clients of every kind do, good and bad, and return how many requests ended in which way."""
    asked = questions()
    end = time.monotonic() + seconds
    counts: dict[str, int] = {}
    lock = threading.Lock()

    def client(number: int) -> None:
        # Each client draws from a generator of its own, so its requests do not depend on the order of threads.
        rng = random.Random(number)
        while time.monotonic() < end:
            body = {"model": "demo", "messages": rng.choice(asked), "max_tokens": rng.choice((8, 64))}
            method = rng.choice(METHODS)
            body["model"] = f"demo:{method}".strip(":")
            body |= rng.choice(({}, {}, {"n": 3, "temperature": 1.0}, {"stop": "."}, {"logprobs": True}))
            body |= rng.choice(({}, {"keepsight": {"grounding": True}}))
            kind = rng.choice(
                ("whole", "stream", "stream", "hang up", "bad picture", "bad method", "no json")
            )
            if kind in ("stream", "hang up"):
                body["stream"] = True
            if kind == "bad picture":
                # Every PNG begins with these characters in base 64; with another one it is a damaged file.
                body["messages"] = json.loads(json.dumps(body["messages"]).replace("iVBOR", "iVBOX"))
            if kind == "bad method":
                body["keepsight"] = {"methods": ["nothing"]}
            content = b"{" if kind == "no json" else json.dumps(body).encode()
            try:
                status, answer = post(port, content, read=kind != "hang up")
            except OSError as error:
                status, answer = -1, str(error).encode()
            expected = {"bad picture": 400, "bad method": 400, "no json": 400}.get(kind, 200)
            # The status of a stream is sent before its first token, so a later error shows in the body alone.
            broken = kind == "stream" and not answer.rstrip().endswith(b"[DONE]")
            good = status == expected and not broken and b'data: {"error"' not in answer
            with lock:
                name = kind if good else f"UNEXPECTED {kind} {status}"
                counts[name] = counts.get(name, 0) + 1

    together(client)
    return counts


def soak(minutes: float) -> dict[str, Any]:
    """Measure memory, hooks and threads of a server under mixed load, and once more when all requests are done."""
    import gc

    import psutil
    import torch

    from keepsight.engines.hf.edit_state import STATES
    from keepsight.inference.loading import load
    from keepsight.serve.addresses import listen
    from keepsight.serve.batching_engine import BatchingEngine
    from keepsight.serve.limits import Limits
    from keepsight.serve.malloc_trim import trim_memory
    from keepsight.serve.model_registry import ModelRegistry
    from keepsight.serve.request_handler import RequestHandler, limits_for
    from keepsight.serve.server import Server

    torch.set_num_threads(1)
    model, processor = load("demo")
    service = RequestHandler(
        engine=BatchingEngine(model, processor),
        models=ModelRegistry.from_specs("demo", [method for method in METHODS if method]),
        limits=limits_for("demo", Limits()),
    )
    bound = listen("127.0.0.1", 0)
    running = Server(service, grace=5)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [bound]})
    thread.start()
    begun = time.monotonic()
    own = psutil.Process()

    def sample() -> dict[str, Any]:
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
        return {
            "seconds": round(time.monotonic() - begun, 1),
            "rss_mib": round(own.memory_info().rss / 2**20, 1),
            # ``gc.get_objects`` does not do here: it hands out tuples that other threads are still filling, at which CPython
            # fails.
            "blocks": sys.getallocatedblocks(),
            "hooks": hooks,
            "sessions": len(STATES),
            "threads": threading.active_count(),
            "running": service.engine.running,
            "waiting": service.engine.waiting,
        }

    curve = [sample()]
    # The clients run in a process of their own, so memory and threads of this one are those of the server.
    command = [
        sys.executable,
        __file__,
        "--clients-of",
        str(bound.getsockname()[1]),
        "--minutes",
        str(minutes),
    ]
    clients = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    pause = max(minutes * 60 / 60, 1.0)
    while clients.poll() is None:
        time.sleep(pause)
        curve.append(sample())
    assert clients.stdout is not None
    counts = json.loads(clients.stdout.read())
    for _ in range(100):
        if not (service.engine.running or service.engine.waiting):
            break
        time.sleep(0.1)
    gc.collect()
    # What the C library keeps of freed memory is no leak.
    trim_memory()
    quiet = sample()
    running.should_exit = True
    thread.join()
    bound.close()
    return {"minutes": minutes, "requests": counts, "quiet": quiet, "curve": curve}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="of throughput; 0 leaves it out")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each server in a round")
    parser.add_argument("--minutes", type=float, default=1.0, help="of mixed load; 0 leaves it out")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--clients-of", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.clients_of:
        print(json.dumps(mixed(chosen.clients_of, chosen.minutes * 60)))
        return
    from keepsight.experiments.environment import hardware, versions, weights
    from keepsight.files import as_json, check_writable, write_whole

    if chosen.json:
        check_writable(chosen.json)
    found: dict[str, Any] = {
        "model": "demo",
        "clients": CLIENTS,
        "pictures": PICTURES,
        "rounds": chosen.rounds,
        "seconds": chosen.seconds,
        "second_branch": list(SECOND_BRANCH),
    }
    if chosen.rounds:
        found["throughput"] = throughput(chosen.rounds, chosen.seconds)
        for row in found["throughput"]:
            low, high = row["times_transformers_serve_range"]
            print(
                f"{row['server']:34} {row['answers_per_second']:6.2f}/s  p50 {row['latency_median']:.2f} s  p95"
                f" {row['latency_p95']:.2f} s  {row['times_transformers_serve']:.2f}x [{low:.2f}, {high:.2f}]"
            )
    if chosen.minutes:
        found["soak"] = soak(chosen.minutes)
        print(found["soak"]["requests"])
        for point in (
            *found["soak"]["curve"][:: max(len(found["soak"]["curve"]) // 10, 1)],
            found["soak"]["quiet"],
        ):
            print(point)
    found |= {"weights": weights("demo"), "hardware": hardware("cpu"), "versions": versions()}
    if chosen.json:
        write_whole(chosen.json, as_json(found))


if __name__ == "__main__":
    main()
