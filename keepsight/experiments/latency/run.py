"""Carries out ``keepsight bench``: measures all combinations of lengths, batches and variants, and returns one
dictionary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from keepsight.errors import InvalidParameter, did_you_mean
from keepsight.experiments.environment import hardware, versions
from keepsight.experiments.latency.measure import CLOCKS, measure, measurements
from keepsight.experiments.latency.memory import LEAST_MIB, cuda_peak_mib, measurable, peak_mib
from keepsight.experiments.latency.subjects import DTYPES, Source, build, tiles
from keepsight.experiments.latency.variants import CACHES, PEERS, PLAIN, Way, plan

FEWEST_TOKENS = 8
Bar = Callable[[int, str], AbstractContextManager[Callable[[int], None]]]
"""Makes a progress bar for a number of steps and a title; the function it yields moves the bar on by some steps."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run measures.

    Args:
        new_tokens: the lengths of the generations, 8 or more each. All combinations with the next two are measured.
        batch: the rows of a batch, 1 or more each.
        image_tokens: the visual tokens of a prompt, 1 or more each; for random weights only.
        repeats: how many pairs of a plain and another generation each variant gets, 1 or more.
        fused: ``auto``, ``on`` or ``off``, see ``variants.plan``.
        peers: entries of ``variants.PEERS``.
        cache: the cache of every generation, plain ones included: an entry of ``variants.CACHES``.
        clock: ``wall``, or ``cpu`` for the CPU seconds of the process, which other busy processes disturb less.
        memory: whether peak memory is measured.
        threads: how many threads torch uses on the CPU, 1 or more; None leaves the number as it is.

    Raises:
        InvalidParameter: a value is out of its range.
    """

    new_tokens: tuple[int, ...] = (128,)
    batch: tuple[int, ...] = (1,)
    image_tokens: tuple[int, ...] = (576,)
    repeats: int = 5
    fused: str = "auto"
    peers: tuple[str, ...] = ("naive", "cfg", "eager")
    cache: str = "dynamic"
    clock: str = "wall"
    memory: bool = True
    threads: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("new_tokens", FEWEST_TOKENS), ("batch", 1), ("image_tokens", 1)):
            values = getattr(self, name)
            if not values or any(value < least for value in values) or len(set(values)) < len(values):
                written = ",".join(map(str, values))
                raise InvalidParameter(
                    f"{name}={written} must be different whole numbers, {least} or more, parted by commas"
                )
        if self.repeats < 1 or (self.threads is not None and self.threads < 1):
            raise InvalidParameter("repeats and threads must be 1 or more")
        for name, value, known in (
            ("fused", self.fused, ("auto", "on", "off")),
            ("cache", self.cache, CACHES),
            ("clock", self.clock, CLOCKS),
            *(("peer", peer, PEERS) for peer in self.peers),
        ):
            if value not in known:
                raise InvalidParameter(f"{name} {value!r}: {did_you_mean(value, known)}")


def check(source: Source, settings: Settings) -> None:
    """Refuse what is known to be wrong before a model is built.

    Raises:
        InputError: the precision is unknown, the clock does not see the device, or visual tokens cannot be cut into
            pictures.
    """
    if source.dtype not in ("auto", *DTYPES):
        raise InvalidParameter(f"dtype {source.dtype!r}: {did_you_mean(source.dtype, ('auto', *DTYPES))}")
    # While a GPU works, the CPU mostly waits, so its seconds say nothing about the cost.
    if settings.clock == "cpu" and source.device != "cpu":
        raise InvalidParameter(f"clock 'cpu' does not see what {source.device} does: take 'wall'")
    if source.shape is not None:
        for count in settings.image_tokens:
            tiles(count)


def run(
    source: Source,
    settings: Settings,
    specs: Sequence[str],
    bar: Bar = lambda *_: nullcontext(lambda _: None),
) -> dict[str, Any]:
    """Measure, and return everything that ``keepsight bench --json`` writes.

    Args:
        source: the model that is measured.
        settings: what is measured on it.
        specs: the specs of the methods.
        bar: makes a progress bar for a number of steps and a title; the default makes none.

    Raises:
        UnsupportedModel, NeedsCalibration: a method does not run on the model.
        InputError: as ``check``.
    """
    check(source, settings)
    # The number of threads is a setting of the whole process, so the caller gets its own back.
    with using_threads(settings.threads):
        rows: list[dict[str, Any]] = []
        # Each combination may add the same note: the keys of a dictionary keep the notes apart and in order.
        notes: dict[str, None] = {}
        machine: dict[str, Any] = {}
        dtype = source.dtype
        lengths = settings.image_tokens if source.shape is not None else (None,)
        # The number of visual tokens decides the size of the vision tower's picture, so that each number needs a model of
        # its own. A checkpoint's processor decides it, and there is one model.
        for count in lengths:
            here = replace(source, image_tokens=count)
            subject = build(here)
            # The hardware is read inside the block, because it tells the number of threads that are used.
            machine = hardware(source.device)
            dtype = str(subject.model.dtype).removeprefix("torch.")
            for batch in settings.batch:
                inputs = subject.inputs(batch)
                ways, said = plan(
                    subject.model, inputs, list(specs), fused=settings.fused, peers=settings.peers
                )
                notes |= dict.fromkeys(said)
                for new in settings.new_tokens:
                    title = f"batch {batch}, {inputs['input_ids'].shape[1]} + {new} tokens"
                    with bar(measurements(len(ways), settings.repeats), title) as advance:
                        found = measure(
                            subject.model, inputs, ways, new=new, repeats=settings.repeats, clock=settings.clock,
                            cache=settings.cache, advance=advance,
                        )  # fmt: skip
                    with bar(len(ways) + 1, title + ", memory") as advance:
                        peaks = _peaks(subject.model, inputs, here, settings, ways, batch, new, advance)
                    # The first peak is that of the plain generation.
                    for row, peak in zip(found, peaks[1:], strict=True):
                        ratio = over(peak, peaks[0])
                        row |= {"image_tokens": count, "cache": settings.cache}
                        row |= {"peak_mib": peak, "plain_peak_mib": peaks[0], "memory_ratio": ratio}
                    rows += found
            weights = sum(p.numel() * p.element_size() for p in subject.model.parameters()) / 2**20
            parameters = sum(p.numel() for p in subject.model.parameters())
            # Otherwise the model would stay in memory while the next one is built.
            del subject
    if settings.memory and not measurable(source.device):
        notes["peak memory on the CPU is measured on Linux only"] = None
    if any(row["peak_mib"] is not None and row["memory_ratio"] is None for row in rows):
        notes[f"peaks below {LEAST_MIB:.0f} MiB are too small for a ratio"] = None
    return {
        "subject": source.model or "random weights",
        "settings": {
            "device": source.device, "dtype": dtype, "repeats": settings.repeats, "cache": settings.cache,
            "clock": settings.clock, "fused": settings.fused, "peers": list(settings.peers),
        },
        "parameters": parameters,
        "weights_mib": weights,
        "hardware": machine,
        "versions": versions(),
        "notes": list(notes),
        "rows": rows,
    }  # fmt: skip


def over(peak: float | None, plain: float | None) -> float | None:
    """The ratio of two peaks; None if one is unknown, or if plain's is below ``LEAST_MIB``."""
    return peak / plain if peak is not None and plain is not None and plain >= LEAST_MIB else None


def _peaks(
    model: Any,
    inputs: dict[str, Any],
    source: Source,
    settings: Settings,
    ways: list[Way],
    batch: int,
    new: int,
    advance: Callable[[int], None],
) -> list[float | None]:
    """The peak memory of the plain generation and of each variant, in MiB; None where it is not measured."""
    found: list[float | None] = []
    for way in (PLAIN, *ways):
        if not settings.memory or not measurable(source.device):
            found.append(None)
        elif source.device != "cpu":
            found.append(cuda_peak_mib(model, inputs, way, new=new, cache=settings.cache))
        else:
            found.append(
                peak_mib(
                    source,
                    {"kind": way.kind, "method": way.method},
                    batch=batch,
                    new=new,
                    threads=torch.get_num_threads(),
                    cache=settings.cache,
                )
            )
        advance(1)
    return found


@contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    """Let torch use ``count`` threads inside the block; None leaves the number as it is."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
