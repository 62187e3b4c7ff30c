"""``keepsight ui``: opens a page on which two settings answer side by side."""

from __future__ import annotations

from typing import Annotated

import typer

from keepsight.cli._options import CalibrationFile, Device, Dtype, Model
from keepsight.errors import KeepsightError


class MissingExtra(KeepsightError, ImportError):
    """The packages of the extra ``ui`` are not installed."""


def ui(
    model: Model = "demo",
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. The page asks for no password: whoever reaches the address can use it."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 7860,
    calibration: CalibrationFile = None,
    at_once: Annotated[
        int,
        typer.Option(
            min=1, max=8, help="How many answers are written at once, each with a cache of its own."
        ),
    ] = 2,
    device: Device = "cpu",
    dtype: Dtype = "auto",
) -> None:
    """Open a page that shows which words of an answer the picture supports, plain and under a method.

    On the page you upload a picture or take a drawn one, choose two settings, and click a word to see where the model
    looked for it. The page needs nothing from the network. Both answers are greedy and are written at the same time.
    Needs the extra [bold]ui[/bold]. Ctrl-C ends it.
    """
    try:
        from keepsight.serve.page.app import create_page
        from keepsight.serve.page.server import run
    except ModuleNotFoundError as error:
        # Another module that is missing is a fault of the package, which a hint about the extra would hide.
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise MissingExtra(
            f"{error.name} is not installed; install the extra 'ui': pip install -e '.[ui]' in the clone"
        ) from None
    from keepsight.calibration.file import Calibration
    from keepsight.cli._model import open_model
    from keepsight.serve.addresses import is_loopback, listen
    from keepsight.serve.page.service import PageService

    if calibration is not None:
        Calibration.load(calibration)
    # The port is taken before the model is loaded, so that one that is in use is refused at once.
    with listen(host, port) as opened:
        loaded, processor = open_model(model, device, dtype)
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
