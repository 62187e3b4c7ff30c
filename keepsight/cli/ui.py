"""``keepsight ui``: a page on which two settings answer side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keepsight.cli._options import DeviceMap, Dtype
from keepsight.errors import KeepsightError


class MissingExtra(KeepsightError, ImportError):
    """The packages of the extra ``ui`` are not installed."""


def ui(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A folder, a Hugging Face id, or [bold]demo[/bold] for the packaged model."
        ),
    ] = "demo",
    host: Annotated[
        str, typer.Option(help="Address to listen on. Beyond this machine nobody is asked for a password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.")] = 7860,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What [bold]keepsight calibrate[/bold] found in this model, for the methods that need it (var).",
            show_default=False,
        ),
    ] = None,
    at_once: Annotated[
        int,
        typer.Option(min=1, max=8, help="Answers written at the same time, each with a cache of its own."),
    ] = 2,
    device_map: DeviceMap = None,
    dtype: Dtype = "auto",
) -> None:
    """Open a page that shows which words of an answer the picture supports, plain and under a method.

    Upload a picture or take a drawn one, choose two settings, and click a word to see where the model looked for it.

    The page needs nothing from the network. Both answers are written at the same time; they are greedy.
    """
    try:
        from keepsight.serve.page.app import create_page
        from keepsight.serve.page.server import run
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise MissingExtra(
            f"the page needs {error.name}, which is not installed: pip install 'keepsight[ui]'"
        ) from None
    from keepsight.cli.caption import with_calibration
    from keepsight.inference.loading import DEMO, load, quiet_transformers, use_one_thread
    from keepsight.registry import parse
    from keepsight.serve.addresses import is_loopback, listen
    from keepsight.serve.page.service import PageService

    if calibration is not None:
        with_calibration([parse("var")], calibration)
    with listen(host, port) as opened:
        quiet_transformers(bars=model != DEMO)
        if model == DEMO:
            use_one_thread()
        loaded, processor = load(model, dtype=dtype, device_map=device_map)
        service = PageService(
            name=model, model=loaded, processor=processor, calibration=calibration, at_once=at_once
        )
        local = is_loopback(opened.getsockname()[0])
        shown = f"[{host}]" if ":" in host else host
        print(f"{model}: http://{shown}:{opened.getsockname()[1]}/ (Ctrl-C ends it)", flush=True)
        if service.single_worker_reason:
            print(f"Answers are written one after the other: {service.single_worker_reason}", flush=True)
        if not local:
            print("Whoever reaches this address can use it: there is no password.", flush=True)
        try:
            run(create_page(service, local_host=host if local else None), opened)
        except KeyboardInterrupt:
            return
