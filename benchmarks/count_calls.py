"""How much Python of ours runs for each further token: calls of the package's functions, and CPU milliseconds.

    python benchmarks/count_calls.py --json calls.json

The demo model, six layers, captions one drawn picture: without a method, and under each method with the amateur in the main
passes (fused) and apart. In a model this small the time goes into Python, so that the number of calls explains the time; and
unlike the time, the number does not depend on how busy the machine is.

Two generations of different, fixed lengths are counted, and the difference of their calls is divided by the difference of
their lengths: what happens once for each generation, prefill included, cancels out. A call is what ``sys.setprofile``
reports as one, in code of a file below the package: functions, lambdas, and every resumption of a generator. Comprehensions
of lists, sets and dictionaries do not count, since they are calls before Python 3.12 only.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import keepsight
from keepsight.api import attached

PACKAGE = str(Path(keepsight.__file__).parent) + "/"
COMPREHENSIONS = {"<listcomp>", "<setcomp>", "<dictcomp>"}
METHODS = ("m3id", "vcd")
SHORT, LONG = 16, 80
"""New tokens of the two generations."""
REPEATS = 7
"""How often each time is taken; the smallest counts, since other processes can only make it larger."""


@contextmanager
def counting() -> Iterator[Callable[[], int]]:
    """Open a block in which calls into files of the package are counted. The yielded function returns the number so far, and
    may be called once.

    Threads that start inside the block are counted as well.
    """
    calls = itertools.count()

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        # Counting with ``itertools.count`` is one step of C code: threads
        # cannot lose a count between reading and writing it.
        if event == "call" and code.co_filename.startswith(PACKAGE) and code.co_name not in COMPREHENSIONS:
            next(calls)

    # ``sys.setprofile`` acts on the calling thread alone, and ``threading.setprofile`` on those that start later.
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield lambda: next(calls)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


def generate(model: Any, inputs: Mapping[str, Any], specs: Sequence[str], fused: bool, new: int) -> None:
    """Run one greedy generation of exactly ``new`` tokens, under the methods of some specs."""
    with attached(model, inputs, *specs, fused=fused) as processors:
        model.generate(
            **inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False, logits_processor=processors
        )


def calls(model: Any, inputs: Mapping[str, Any], specs: Sequence[str], fused: bool, new: int) -> int:
    """Returns the number of calls into the package that one generation makes."""
    with counting() as count:
        generate(model, inputs, specs, fused, new)
    return count()


def seconds(model: Any, inputs: Mapping[str, Any], specs: Sequence[str], fused: bool, new: int) -> float:
    """Returns the CPU seconds of one generation."""
    begun = time.process_time()
    generate(model, inputs, specs, fused, new)
    return time.process_time() - begun


def measure(methods: Sequence[str] = METHODS, repeats: int = REPEATS) -> list[dict[str, Any]]:
    """Measure calls and CPU milliseconds per further token, plain and under each method, fused and apart.

    Args:
        methods: specs of methods with an amateur.
        repeats: how many pairs of generations are timed, 1 or more.

    Returns:
        Rows with ``method`` (empty for plain), ``fused`` (None for plain), ``calls_per_token`` and ``cpu_ms_per_token``.
    """
    from keepsight.demo.model import PROMPT
    from keepsight.demo.world import scene
    from keepsight.inference.loading import DEMO, load
    from keepsight.source.prompts import prepare

    model, processor = load(DEMO)
    inputs = prepare(processor, [scene("val", 0).image()], PROMPT)
    rows = []
    for spec, fused in [("", None), *((spec, fused) for spec in methods for fused in (True, False))]:
        given = (model, inputs, [spec] if spec else [], bool(fused))
        # Imports and caches of the first use are no cost per token, so one generation goes before.
        generate(*given, SHORT)
        counted = calls(*given, LONG) - calls(*given, SHORT)
        # Calls are counted once, as they are the same each time; times are
        # taken without the profile function, which slows everything.
        pairs = [(seconds(*given, SHORT), seconds(*given, LONG)) for _ in range(repeats)]
        short, long = map(min, zip(*pairs, strict=True))
        rows.append(
            {
                "method": spec,
                "fused": fused,
                "calls_per_token": counted / (LONG - SHORT),
                "cpu_ms_per_token": 1000 * (long - short) / (LONG - SHORT),
            }
        )
    return rows


def main() -> None:
    """The command line."""
    from keepsight.experiments.environment import hardware, versions
    from keepsight.files import as_json, check_writable, write_whole
    from keepsight.inference.loading import quiet_transformers, use_one_thread

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    chosen = parser.parse_args()
    if chosen.json:
        check_writable(chosen.json)
    quiet_transformers()
    use_one_thread()
    rows = measure()
    for row in rows:
        how = "" if row["fused"] is None else "fused" if row["fused"] else "apart"
        print(
            f"{row['method'] or 'plain':6} {how:6} {row['calls_per_token']:8.1f} calls per further token"
            f" {row['cpu_ms_per_token']:8.2f} ms of CPU time"
        )
    if chosen.json:
        settings = {"new_tokens": [SHORT, LONG], "repeats": REPEATS}
        result = {"settings": settings, "rows": rows, "hardware": hardware("cpu"), "versions": versions()}
        write_whole(chosen.json, as_json(result))


if __name__ == "__main__":
    main()
