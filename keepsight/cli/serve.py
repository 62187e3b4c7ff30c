"""``keepsight serve``: serves one model over the OpenAI protocol, with each method as a model name."""

from __future__ import annotations

import re
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from keepsight.cli._options import CalibrationFile, Device, Dtype, Model, method_option
from keepsight.errors import InvalidParameter

_LIMITS = "Limits"
_MIB = 1 << 20


def serve(
    context: typer.Context,
    model: Model = "demo",
    method: Annotated[
        list[str] | None, method_option("every method that runs on the model, at its defaults")
    ] = None,
    calibration: CalibrationFile = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 stands for all addresses of this machine.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)
    ] = 8000,
    name: Annotated[
        str | None,
        typer.Option(help="Model name of the plain model.", show_default="MODEL, or the name of its folder"),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="KEEPSIGHT_API_KEY",
            help="Answer only requests that send this key. It is better set in the environment, where no list of processes"
            " shows it.",
            show_default=False,
        ),
    ] = None,
    fetch_urls: Annotated[
        bool,
        typer.Option(
            "--fetch-urls",
            help="Fetch pictures from http(s) addresses of the public internet, too, and not only data URIs.",
        ),
    ] = False,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-origin",
            metavar="ORIGIN",
            help="Let web pages of this origin ask, such as [bold]http://localhost:3000[/bold]. Repeat the option for"
            " several origins.",
            show_default="none",
        ),
    ] = None,
    max_batch: Annotated[
        int, typer.Option(help="How many answers are written together.", rich_help_panel=_LIMITS)
    ] = 8,
    max_queue: Annotated[
        int,
        typer.Option(
            help="How many answers may wait. Further requests get status 429.", rich_help_panel=_LIMITS
        ),
    ] = 32,
    max_tokens: Annotated[
        int, typer.Option(help="The longest answer, in tokens.", rich_help_panel=_LIMITS)
    ] = 4096,
    max_prompt_tokens: Annotated[
        int | None,
        typer.Option(
            help="The longest conversation, in tokens, pictures included.",
            rich_help_panel=_LIMITS,
            show_default="what the model takes",
        ),
    ] = None,
    max_messages: Annotated[
        int, typer.Option(help="The most messages in a conversation.", rich_help_panel=_LIMITS)
    ] = 1000,
    max_images: Annotated[
        int, typer.Option(help="The most pictures in a conversation; demo takes 1.", rich_help_panel=_LIMITS)
    ] = 16,
    max_image_mb: Annotated[
        float, typer.Option(help="The largest file of a picture, in MiB.", rich_help_panel=_LIMITS)
    ] = 10,
    max_megapixels: Annotated[
        float, typer.Option(help="The largest picture, in million pixels.", rich_help_panel=_LIMITS)
    ] = 50,
    max_request_mb: Annotated[
        float, typer.Option(help="The largest request, in MiB.", rich_help_panel=_LIMITS)
    ] = 20,
    grace: Annotated[
        float,
        typer.Option(
            help="How many seconds answers that are being written have at the end.", rich_help_panel=_LIMITS
        ),
    ] = 30,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    engine_name: Annotated[
        str,
        typer.Option(
            "--engine",
            help="What runs the model: transformers, with every method; or vllm, with methods that change scores alone."
            " Options after -- are then vLLM's own.",
        ),
    ] = "transformers",
) -> None:
    """Serve a model to chat apps that speak OpenAI's protocol, each method under a model name of its own.

        keepsight serve demo --method m3id --method vhr+m3id:decay=0.05

    Point an app's base URL at http://127.0.0.1:8000/v1 and choose demo, demo:m3id or demo:vhr+m3id:decay=0.05 as its
    model. Needs the extra [bold]serve[/bold]. Ctrl-C ends it, once the answers that are being written are done.
    """
    if engine_name == "vllm":
        _serve_with_vllm(context, model, method, name, host, port, dtype, api_key)
        return
    if engine_name != "transformers":
        raise InvalidParameter(f"--engine {engine_name!r} must be transformers or vllm")
    if context.args:
        raise InvalidParameter(
            f"{context.args[0]} is no option of keepsight serve: see keepsight serve --help"
        )
    _check_extra()
    from keepsight.cli._methods import read_methods
    from keepsight.cli._model import open_model
    from keepsight.serve.addresses import is_loopback, listen
    from keepsight.serve.batching_engine import BatchingEngine
    from keepsight.serve.limits import Limits
    from keepsight.serve.model_registry import ModelRegistry
    from keepsight.serve.request_handler import RequestHandler, limits_for
    from keepsight.serve.server import Server
    from keepsight.serve.startup_checks import check_models, runnable_models

    if api_key is not None and not api_key.strip():
        raise InvalidParameter("--api-key is empty: give a key, or leave it out")
    # A key travels in an HTTP header, where only such characters are safe.
    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
        raise InvalidParameter(
            "--api-key must be made of letters, digits and signs of ASCII, without a space"
        )
    if not 0 <= grace <= 3600:
        raise InvalidParameter(f"--grace {grace} must be a number of seconds from 0 to 3600")
    limits = Limits(
        request_bytes=_whole("--max-request-mb", max_request_mb, _MIB),
        image_bytes=_whole("--max-image-mb", max_image_mb, _MIB),
        image_pixels=_whole("--max-megapixels", max_megapixels, 1_000_000),
        images=max_images,
        messages=max_messages,
        prompt_tokens=max_prompt_tokens,
        tokens=max_tokens,
        batch=max_batch,
        queue=max_queue,
    )
    origins = tuple(map(_origin, allow_origin or ()))
    base = name or (Path(model).resolve().name if Path(model).is_dir() else model)
    found = None if calibration is None else str(calibration)
    if calibration is not None:
        from keepsight.calibration.file import Calibration

        Calibration.load(calibration)
    for spec in method or ():
        # This reading refuses a wrong joiner with a message that shows the right one. ``none`` is refused as well, because
        # the plain model is offered in any case.
        if not read_methods(spec):
            raise InvalidParameter("--method none: the plain model is always offered, leave it out")
    models = ModelRegistry.from_specs(base, method or (), found)
    # The port is taken before the model is loaded, so that one that is in use is refused at once.
    bound = listen(host, port)
    with bound:
        loaded, processor = open_model(model, device, dtype)
        if method is None:
            models, why_not = runnable_models(loaded, processor, base, found)
            for line in why_not:
                print(f"not offered: {line}", file=sys.stderr)
        check_models(loaded, processor, models)
        engine = BatchingEngine(loaded, processor, batch=limits.batch, queue=limits.queue)
        handler = RequestHandler(
            engine=engine,
            models=models,
            limits=limits_for(model, limits),
            api_key=api_key,
            fetch_urls=fetch_urls,
            loopback=is_loopback(bound.getsockname()[0]),
            host=host,
            origins=origins,
        )
        # An IPv6 address stands in brackets in a URL, or its colons would be taken for that of the port.
        where = f"[{host}]" if ":" in host else host
        address = f"http://{where}:{bound.getsockname()[1]}/v1"
        if api_key is None and not handler.loopback:
            print(
                f"warning: everybody who reaches {host} may use this server: set --api-key", file=sys.stderr
            )
        print(f"models: {', '.join(models.names)}", flush=True)
        server = Server(handler, grace=grace, ready=lambda: print(f"serving at {address}", flush=True))
        # SIGTERM, with which service managers end a server, is handled like Ctrl-C, and neither is a failure.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with suppress(KeyboardInterrupt):
            server.run(sockets=[bound])


WITH_VLLM = frozenset({"model", "method", "name", "host", "port", "dtype", "api_key", "engine_name"})
"""Options that count with ``--engine vllm``. The others belong to our own server; vLLM has its own limits and devices."""


def _serve_with_vllm(
    context: typer.Context,
    model: str,
    method: list[str] | None,
    name: str | None,
    host: str,
    port: int,
    dtype: str,
    api_key: str | None,
) -> None:
    """Check what is asked for, and become vLLM's server. Raises ``InvalidParameter``."""
    from keepsight.cli._methods import read_methods
    from keepsight.inference.loading import DEMO
    from keepsight.serve.vllm_server import command, replace_process
    from keepsight.vllm import engine_args

    for option in context.params:
        given = context.get_parameter_source(option)
        if option not in WITH_VLLM and given is not None and given.name != "DEFAULT":
            flag = "--" + option.replace("_", "-")
            raise InvalidParameter(
                f"{flag} has no effect with --engine vllm: use vLLM's own options, after --"
            )
    if model == DEMO:
        raise InvalidParameter(
            "vLLM does not run the demo model, whose heads are too small: name a checkpoint"
        )
    if port == 0:
        raise InvalidParameter("--port 0 has no meaning with --engine vllm: name a port")
    specs = list(DEFAULT_WITH_VLLM) if method is None else method
    for spec in specs:
        if not read_methods(spec):
            raise InvalidParameter("--method none: the plain model is always offered, leave it out")
    engine_args(specs)
    base = name or (Path(model).resolve().name if Path(model).is_dir() else model)
    arguments, environment = command(
        model, specs, context.args, name=base, host=host, port=port, dtype=dtype, api_key=api_key
    )
    print(f"models: {', '.join([base, *(f'{base}:{spec}' for spec in specs)])}", flush=True)
    replace_process(arguments, environment)


DEFAULT_WITH_VLLM = ("m3id", "vcd")
"""What is offered where no method is given: those that run inside vLLM at their defaults."""


def _check_extra() -> None:
    """Check that the packages of the extra ``serve`` are installed. Raises ``MissingExtra``."""
    from keepsight.serve.errors import MissingExtra

    try:
        import fastapi  # noqa: F401
        import openai  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtra(
            f"{error.name} is not installed; install the extra 'serve': pip install -e '.[serve]' in the clone"
        ) from None


def _origin(text: str) -> str:
    """An origin as browsers send it. Raises ``InvalidParameter``."""
    if not re.fullmatch(r"https?://(\[[0-9a-f:]+\]|[a-z0-9.-]+)(:[0-9]+)?", text):
        raise InvalidParameter(
            f"--allow-origin {text!r} is no origin: write it as browsers do, such as http://localhost:3000"
        )
    return text


def _whole(option: str, value: float, unit: int) -> int:
    """A limit in whole units, 1 or more. Raises ``InvalidParameter`` for a number that is not above 0."""
    if not 0 < value < 1e9:
        raise InvalidParameter(f"{option} {value} must be a number above 0")
    return max(int(value * unit), 1)
