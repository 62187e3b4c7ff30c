"""What methods do and cost on a GPU: verification in three precisions, then times at two shapes, within some minutes.

    benchmarks/gpu/run --wheels wheels
    benchmarks/gpu/run --dry-run

``benchmarks/gpu/run`` calls this file once everything that it needs is installed. Weights are random, of the shapes of
``keepsight bench --shape``, and one model at a time is in memory. Each step is started only if it is expected to end in
time, by what steps of its kind have taken so far. What was left out is printed, and stands in ``summary.json``.
"""

from __future__ import annotations

import argparse
import gc
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
MINUTES = 8.0
SEED = 0
"""The seed of weights and prompts, which ``keepsight.experiments.latency.subjects`` fixes."""
DTYPES = ("bfloat16", "float16", "float32")
BENCHED = ("vcd", "m3id", "vhr", "pai")
"""The methods that are timed; plain generation alternates with each."""
DROPPED = 12
"""How many tokens of text the second prompt of the batch has fewer than the first."""
TINY: dict[str, Any] = {
    "text": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 32064},
    "vision": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
}  # fmt: skip
"""The shape of a dry run. SLA's default needs six layers, and the vocabulary holds the image token, whose id is 32,000."""


class OutOfTime(BaseException):
    """The deadline has passed in the middle of a step. A verification, which catches ``Exception``, must not catch it."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run does.

    Args:
        device: ``cuda`` or ``cpu``.
        verified: the name and the sizes of the shape that is verified, and the visual tokens of its prompts.
        benched: the names and the sizes of the shapes that are timed.
        tokens, batches, repeats, image_tokens: of ``keepsight bench``.
        dtype: the precision of the bench.
        verify_tokens: how many tokens each run of a verification writes.
        guesses: by kind of step, how many seconds a step of work 1 takes before one has been measured.
        share: the share of the time that verification may take, so that some is left for the bench.
        methods: the names of the methods that are verified; none is every one.
    """

    device: str
    verified: tuple[str, Mapping[str, Any], int]
    benched: Sequence[tuple[str, Mapping[str, Any]]]
    tokens: int
    batches: Sequence[int]
    repeats: int
    image_tokens: int
    dtype: str
    verify_tokens: int
    guesses: Mapping[str, float]
    share: float = 0.55
    methods: Sequence[str] = ()


def real_plan() -> Plan:
    """The plan of a run on a GPU."""
    from keepsight.experiments.latency.subjects import SHAPES

    return Plan(
        device="cuda", verified=("130m", SHAPES["130m"], 144), benched=[(name, SHAPES[name]) for name in ("1b", "7b")],
        tokens=16, batches=(1, 8), repeats=3, image_tokens=576, dtype="bfloat16", verify_tokens=4,
        guesses={"verify": 20, "bench": 60},
    )  # fmt: skip


def dry_plan() -> Plan:
    """The plan of a dry run: the same steps at a tiny shape on the CPU."""
    return Plan(
        device="cpu", verified=("tiny", TINY, 16), benched=[("tiny", TINY)], tokens=8, batches=(1, 2), repeats=1,
        image_tokens=16, dtype="float32", verify_tokens=2, guesses={"verify": 2, "bench": 2},
    )  # fmt: skip


@dataclass(kw_only=True)
class Budget:
    """Decides whether a step fits into what is left of the time.

    Args:
        seconds: the time of the whole run.
        guesses: see ``Plan``.
        now: the seconds since the start of the run.
    """

    seconds: float
    guesses: Mapping[str, float]
    now: Callable[[], float]
    rates: dict[str, float] = field(default_factory=dict)

    def expected(self, kind: str, work: float) -> float:
        """How many seconds a step takes: as long as the slowest of its kind so far for the same work, and a fifth more."""
        return work * (1.2 * self.rates[kind] if kind in self.rates else self.guesses[kind])

    def fits(self, kind: str, work: float, share: float = 1.0) -> bool:
        """Whether a step ends before a share of the time is over."""
        return self.now() + self.expected(kind, work) <= share * self.seconds

    def took(self, kind: str, work: float, seconds: float) -> None:
        """Remember what a step has taken."""
        self.rates[kind] = max(self.rates.get(kind, 0.0), seconds / work)


@dataclass(kw_only=True)
class Run:
    """What has come of the steps so far.

    Args:
        out: the folder that files are written to.
        machine: what stands in each file about hardware and versions.
        budget: the time that is left.
    """

    out: Path
    machine: dict[str, Any]
    budget: Budget
    steps: list[dict[str, Any]] = field(default_factory=list)

    def step(self, name: str, kind: str, work: float, do: Callable[[], str], share: float = 1.0) -> None:
        """Run a step if it fits, and note how it ended: ``done``, ``left out``, ``out of time`` or ``failed``."""
        from keepsight.errors import first_line

        budget = self.budget
        if not budget.fits(kind, work, share):
            about = budget.expected(kind, work)
            reason = f"about {about:.0f} s, and {max(share * budget.seconds - budget.now(), 0):.0f} s were left for it"
            self._note(name, "left out", 0.0, reason)
            return
        begun = budget.now()
        ended, said = "done", ""
        try:
            said = do()
        except OutOfTime:
            ended, said = "out of time", "the time was over before it ended"
        except Exception as error:
            ended, said = "failed", f"{type(error).__name__}: {first_line(error)}"
        finally:
            emptied()
        seconds = budget.now() - begun
        if ended == "done":
            budget.took(kind, work, seconds)
        self._note(name, ended, seconds, said)

    def _note(self, name: str, ended: str, seconds: float, said: str) -> None:
        self.steps.append({"step": name, "ended": ended, "seconds": round(seconds, 1), "said": said})
        print(f"{self.budget.now():5.0f} s  {name}: {ended}{', ' if said else ''}{said}", flush=True)

    def write(self, name: str, values: Mapping[str, Any]) -> None:
        """Write one file of the results."""
        from keepsight.files import as_json, write_whole

        self.out.mkdir(parents=True, exist_ok=True)
        write_whole(self.out / f"{name}.json", as_json({"machine": self.machine, "seed": SEED, **values}))


def emptied() -> None:
    """Give back the memory of a model that nothing holds any more."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def padded(inputs: Mapping[str, Any], dropped: int = DROPPED) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Two prompts of one length as a batch that is padded on the left, and each of them alone.

    Args:
        inputs: two rows without padding; pictures stand in equal numbers in ``pixel_values``.
        dropped: how many tokens are taken from the end of the second row.
    """
    import torch

    ids, mask, pixels = (inputs[key] for key in ("input_ids", "attention_mask", "pixel_values"))
    each = len(pixels) // 2
    length = ids.shape[1] - dropped
    alone = [
        {"input_ids": ids[:1], "attention_mask": mask[:1], "pixel_values": pixels[:each]},
        {"input_ids": ids[1:, :length], "attention_mask": mask[1:, :length], "pixel_values": pixels[each:]},
    ]
    filler = torch.zeros_like(ids[1:, :dropped])
    both = {
        "input_ids": torch.cat([ids[:1], torch.cat([filler, alone[1]["input_ids"]], dim=1)]),
        "attention_mask": torch.cat([mask[:1], torch.cat([filler, alone[1]["attention_mask"]], dim=1)]),
        "pixel_values": pixels,
    }
    return both, alone


def verified(run: Run, plan: Plan) -> None:
    """Verify every method in each precision, method by method, so that what does not fit can be left out."""
    from keepsight.experiments.latency.subjects import Source, build
    from keepsight.registry import methods

    name, shape, image_tokens = plan.verified
    for dtype in DTYPES:
        subject: Any = None
        reports: list[dict[str, Any]] = []

        def one(cls: Any, dtype: str = dtype, reports: list[dict[str, Any]] = reports) -> str:
            from keepsight.verification import verify_inputs

            nonlocal subject
            if subject is None:
                subject = build(
                    Source(shape=shape, device=plan.device, dtype=dtype, image_tokens=image_tokens)
                )
            both, alone = padded(subject.inputs(2))
            report = verify_inputs(
                subject.model, alone[0], (both, alone), methods=[cls()], tokens=plan.verify_tokens
            )
            reports.append(report.as_dict())
            run.write(
                f"verify-{name}-{dtype}", {"shape": name, "image_tokens": image_tokens, "reports": reports}
            )
            return f"{len(report.findings)} comparisons, {len(report.wrong)} WRONG"

        for spec in plan.methods or methods():
            cls = methods()[spec]
            run.step(f"verify {name} {dtype} {spec}", "verify", 1.0, lambda cls=cls: one(cls), plan.share)
        subject = None
        emptied()


def benched(run: Run, plan: Plan) -> None:
    """Time methods at each shape and batch, each in a step of its own."""
    from keepsight.experiments.latency.run import Settings
    from keepsight.experiments.latency.run import run as bench
    from keepsight.experiments.latency.subjects import Source

    def one(name: str, shape: Mapping[str, Any], batch: int) -> str:
        settings = Settings(
            new_tokens=(plan.tokens,), batch=(batch,), image_tokens=(plan.image_tokens,), repeats=plan.repeats, peers=(),
            fused="auto", clock="wall", memory=plan.device != "cpu",
        )  # fmt: skip
        result = bench(Source(shape=shape, device=plan.device, dtype=plan.dtype), settings, BENCHED)
        result["subject"] = f"random weights, shape {name}"
        run.write(f"bench-{name}-batch{batch}", result)
        return f"{len(result['rows'])} rows"

    first = layers(plan.benched[0][1])
    for batch in plan.batches:
        for name, shape in plan.benched:
            # A token costs about one launch of each kernel of each layer; large batches add some arithmetic
            work = layers(shape) / first * (1.0 if batch == 1 else 1.5)
            run.step(
                f"bench {name} batch {batch}",
                "bench",
                work,
                lambda name=name, shape=shape, batch=batch: one(name, shape, batch),
            )


def layers(shape: Mapping[str, Any]) -> int:
    """How many layers the decoder of a shape has."""
    count: int = shape["text"]["num_hidden_layers"]
    return count


def machine(device: str) -> dict[str, Any]:
    """Hardware, driver, CUDA and the versions of packages."""
    import torch

    from keepsight.experiments.environment import hardware, versions

    found: dict[str, Any] = {"hardware": hardware(device), "versions": versions(), "cuda": torch.version.cuda}
    if device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": gpu.name,
            "gpu_memory_mib": gpu.total_memory // 2**20,
            "capability": f"{gpu.major}.{gpu.minor}",
            "cudnn": torch.backends.cudnn.version(),
            "driver": driver(),
        }
    return found


def driver() -> str | None:
    """The version of NVIDIA's driver; None where ``nvidia-smi`` does not say."""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return (
            subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
            or None
        )
    except (OSError, subprocess.SubprocessError):
        return None


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise ``OutOfTime`` in the block once some seconds have passed; nothing is raised outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_signal: int, _frame: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def summary(run: Run) -> tuple[list[str], int]:
    """The lines that sum a run up, and its exit code: 1 if anything is WRONG or has failed."""
    import json

    lines: list[str] = []
    wrong = counted = 0
    for path in sorted(run.out.glob("verify-*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        findings = [finding for report in found["reports"] for finding in report["findings"]]
        bad = [finding for finding in findings if finding["verdict"] == "WRONG"]
        counted, wrong = counted + len(findings), wrong + len(bad)
        lines += [f"WRONG {path.stem}, {one['method']}, {one['compared']}: {one['reason']}" for one in bad]
    for path in sorted(run.out.glob("bench-*.json")):
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            kind = {"fused": "fused", "separate": "apart"}.get(row["way"], "")
            lines.append(
                f"{path.stem:<18} {row['method']:<6} {kind:<6} prefill {row['prefill_ratio']:.2f}x, per token"
                f" {row['decode_ratio']:.2f}x of {row['plain_token_ms']:.2f} ms"
                + ("" if row["same_tokens"] is not False else ", other tokens than apart")
            )
    failed = [one for one in run.steps if one["ended"] == "failed"]
    lines += [f"FAILED {one['step']}: {one['said']}" for one in failed]
    missing = [one["step"] for one in run.steps if one["ended"] in ("left out", "out of time")]
    lines.append(f"left out for want of time: {', '.join(missing) if missing else 'nothing'}")
    lines.append(f"{counted} comparisons, {wrong} WRONG; {len(failed)} steps failed; files in {run.out}")
    return lines, int(bool(wrong or failed))


def carried_out(plan: Plan, out: Path, *, seconds: float, since: Callable[[], float]) -> int:
    """Carry out a plan, write its files, and print how it went.

    Args:
        plan: what is done.
        out: a folder, which must hold no files of an earlier run.
        seconds: how long everything may take.
        since: gives the seconds since the start.

    Returns:
        The exit code.
    """
    import torch

    from keepsight.experiments.latency.run import using_threads
    from keepsight.inference.loading import quiet_transformers

    quiet_transformers()
    # The last seconds are for writing files and the summary
    budget = Budget(seconds=seconds - 5.0, guesses=plan.guesses, now=since)
    run = Run(out=out, machine=machine(plan.device), budget=budget)
    torch.manual_seed(SEED)
    try:
        # Several threads make a tiny model no faster on the CPU, and much slower where other programs run as well
        with alarm(budget.seconds - since()), using_threads(1 if plan.device == "cpu" else None):
            verified(run, plan)
            benched(run, plan)
    except OutOfTime:  # between two steps
        run._note("whatever else was planned", "left out", 0.0, "the time was over")
    lines, code = summary(run)
    run.write(
        "summary",
        {"minutes": seconds / 60, "seconds": round(since(), 1), "steps": run.steps, "exit_code": code},
    )
    print("\n" + "\n".join(lines))
    return code


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="What methods do and cost on a GPU; see docs/bench.md.")
    parser.add_argument("--dry-run", action="store_true", help="the same steps on the CPU at a tiny shape")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help="how long everything may take (default: 8)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of the results (default: benchmarks/results/gpu; a dry run: a temporary one)",
    )
    parser.add_argument("--started", type=float, default=time.time(), help=argparse.SUPPRESS)
    chosen = parser.parse_args(given)
    if not 0.5 <= chosen.minutes <= 24 * 60:
        parser.error(f"--minutes {chosen.minutes:g} must be between 0.5 and 1440")
    if chosen.out is None:
        chosen.out = Path(tempfile.mkdtemp(prefix="keepsight-gpu-")) if chosen.dry_run else RESULTS / "gpu"
    if chosen.dry_run and chosen.out.resolve().is_relative_to(RESULTS):
        parser.error("--dry-run measures nothing real: give --out a folder outside benchmarks/results")
    return chosen


def main(given: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0, 1 if anything is WRONG or has failed, 2 if nothing can be run."""
    chosen = arguments(given)
    import torch

    if not chosen.dry_run and not torch.cuda.is_available():
        print(
            "torch sees no CUDA device here; --dry-run does the same on the CPU at a tiny shape",
            file=sys.stderr,
        )
        return 2
    old = sorted(path.name for path in chosen.out.glob("*.json"))
    if old:
        print(
            f"{chosen.out} holds the results of an earlier run ({', '.join(old[:3])}): move them, or give another --out",
            file=sys.stderr,
        )
        return 2
    plan = dry_plan() if chosen.dry_run else real_plan()
    # What was installed before counts as well, so that the start is told by the script that did it
    return carried_out(
        plan, chosen.out, seconds=60 * chosen.minutes, since=lambda: time.time() - chosen.started
    )


if __name__ == "__main__":
    sys.exit(main())
