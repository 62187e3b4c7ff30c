"""The scheduler without a model: random sizes, budgets, lengths, arrivals and aborts, with up to two steps in flight."""

from __future__ import annotations

import copy
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest
from inside_vllm import SPECS, Engine, ask, pictures

pytestmark = pytest.mark.vllm
CONFIGURATIONS = 200
REQUESTS = 20
END, PIECE = 2, 60
MIXES = {
    "m3id": ["m3id"], "vcd": ["vcd"], "two amateurs": ["two amateurs"],
    "mixed": ["greedy", "m3id", "vcd", "joined", "two amateurs"],
}  # fmt: skip


@dataclass(frozen=True)
class Made:
    """An engine's parts, of which schedulers can be made, and the requests that its front end makes of pictures."""

    scheduler: Any
    requests: list[Any]


@pytest.fixture(scope="module")
def made(start: Callable[..., Any]) -> Made:
    engine = Engine(
        start([SPECS["two amateurs"]], max_num_seqs=16, block_size=32, max_num_batched_tokens=512)
    )
    scheduler, taken = engine.scheduler, []
    add = scheduler.add_request
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "add_request", lambda request: (taken.append(request), add(request)))
        params = engine.params(None, max_tokens=1)
        engine.llm.generate([ask(image) for image in pictures()[:REQUESTS]], params, use_tqdm=False)
    return Made(scheduler, taken)


def token(request: int, step: int, length: int) -> int:
    """What a model without a mind writes: known from the number of the request and the step alone."""
    return END if step == length - 1 else 10 + (request * 7919 + step * 31) % 400


@dataclass
class Run:
    """One configuration, run to its end."""

    made: Made
    seed: int
    careless: bool = False
    got: dict[str, list[int]] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)
    aborted: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.depth = self.random.choice([1, 2, 2, 2])
        self.lengths = [self.random.randint(1, PIECE) for _ in range(REQUESTS)]
        self.mix = MIXES[self.random.choice(list(MIXES))]
        self.scheduler = self._scheduler()

    def _scheduler(self) -> Any:
        from keepsight.engines.vllm.scheduler import PairScheduler

        old, choose = self.made.scheduler, self.random.choice
        config = copy.copy(old.vllm_config)
        config.scheduler_config = settings = copy.copy(config.scheduler_config)
        config.cache_config = copy.copy(config.cache_config)
        settings.max_num_seqs = choose([3, 4, 5, 8, 16])
        settings.max_num_batched_tokens = settings.max_num_scheduled_tokens = choose([260, 300, 512])
        settings.watermark = choose([0.0, 0.0, 0.05])
        settings.policy = choose(["fcfs", "fcfs", "priority"])
        self.blocks = config.cache_config.num_gpu_blocks = choose([20, 22, 24, 27, 32, 60])
        kv = copy.copy(old.kv_cache_config)
        kv.num_blocks = self.blocks

        class Careless(PairScheduler):
            """Admits and preempts requests one by one, as the base class does."""

            def _room(self, members: Any) -> bool:
                return True

            def _make_room(self) -> bool:
                return False

        kind = Careless if self.careless else PairScheduler
        return kind(config, kv, old.structured_output_manager, old.block_size)

    def request(self, number: int) -> Any:
        from vllm import SamplingParams
        from vllm.v1.request import Request

        spec, like = SPECS[self.mix[number % len(self.mix)]], self.made.requests[number]
        extra = {} if spec is None else {"extra_args": {"keepsight": spec}}
        params = SamplingParams(temperature=0, max_tokens=PIECE, stop_token_ids=[END], **extra)
        return Request(
            f"r{number}", list(like.prompt_token_ids), params, None, mm_features=list(like.mm_features),
            block_hasher=like._block_hasher, arrival_time=float(number), priority=number % 3,
        )  # fmt: skip

    def run(self) -> None:
        waiting, flight, steps = deque(range(REQUESTS)), deque(), 0
        while waiting or self.scheduler.requests or flight:
            steps += 1
            assert steps < 6000, f"seed {self.seed}: requests wait for ever"
            while waiting and self.random.random() < 0.4:
                self.scheduler.add_request(self.request(waiting.popleft()))
            self._abort()
            if self.scheduler.requests and len(flight) < self.depth:
                flight.append(self._schedule())
            if flight and (len(flight) >= self.depth or self.random.random() < 0.5):
                self._finish(*flight.popleft())
        self.steps = steps

    def _abort(self) -> None:
        from vllm.v1.request import RequestStatus

        alive = sorted(own for own in self.scheduler.requests if "~" not in own)
        if alive and self.random.random() < 0.01:
            own = self.random.choice(alive)
            told = self.scheduler.finish_requests([own], RequestStatus.FINISHED_ABORTED)
            assert [one.request_id for one in told] == [own]
            self.aborted.add(own)

    def _schedule(self) -> tuple[Any, dict[str, list[int]]]:
        """One step, and what the model draws in it. Amateurs draw the expert's token only beside the expert."""
        output = self.scheduler.schedule()
        places = {}
        for own in output.num_scheduled_tokens:
            one = self.scheduler.requests[own]
            # A request that was preempted after it was scheduled still runs, and nobody wants what it draws
            thrown_away = one.num_computed_tokens == 0
            if not thrown_away and not one.is_prefill_chunk:
                places[own] = one.num_output_tokens + one.num_output_placeholders - 1
        drawn: dict[str, list[int]] = {own: [] for own in output.num_scheduled_tokens}
        for own, place in places.items():
            number = int(own.partition("~")[0][1:])
            members = self.scheduler._sets.get(own)
            together = members is None or {places.get(one) for one in members.ids} == {place}
            assert together, f"seed {self.seed}: {own} draws alone"
            drawn[own] = [token(number, place, self.lengths[number])]
        return output, drawn

    def _finish(self, output: Any, drawn: dict[str, list[int]]) -> None:
        from vllm.v1.outputs import ModelRunnerOutput

        rows = list(drawn)
        result = ModelRunnerOutput(
            req_ids=rows,
            req_id_to_index={own: index for index, own in enumerate(rows)},
            sampled_token_ids=[drawn[own] for own in rows],
        )
        for client in self.scheduler.update_from_output(output, result).values():
            for one in client.outputs:
                assert "~" not in one.request_id
                self.got.setdefault(one.request_id, []).extend(one.new_token_ids)
                if one.finish_reason is not None:
                    self.ended[one.request_id] = one.finish_reason.name

    def check(self) -> Counter[str]:
        """Every answer is what it must be, and nothing is left behind. Returns what happened."""
        for number, length in enumerate(self.lengths):
            own = f"r{number}"
            answer = [token(number, step, length) for step in range(length)]
            got, how = self.got.get(own, []), self.ended.get(own)
            if own in self.aborted or how == "ERROR":
                assert got == answer[: len(got)], f"seed {self.seed}: {own} wrote a wrong token"
            else:
                assert (got, how) in ((answer, "STOP"), (answer, "LENGTH")), f"seed {self.seed}: {own}"
        scheduler = self.scheduler
        for name in ("requests", "_sets", "_refused", "running", "waiting", "deferred_waiting"):
            assert not getattr(scheduler, name), f"seed {self.seed}: {name}"
        assert scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == self.blocks - 1
        return Counter({**asdict(scheduler.counts), "errors": list(self.ended.values()).count("ERROR")})


def test_random_configurations(made: Made) -> None:
    total: Counter[str] = Counter()
    for seed in range(CONFIGURATIONS):
        run = Run(made, seed)
        run.run()
        total += run.check()
    print(dict(total))
    assert total["sets"] > CONFIGURATIONS * REQUESTS // 2
    assert total["preempted"] > CONFIGURATIONS
    assert total["errors"] == total["failed"] + total["refused"]


def test_without_care_steps_are_repaired_and_no_token_is_wrong(made: Made) -> None:
    """What admission and preemption prevent is thrown away afterwards, or fails loudly."""
    total: Counter[str] = Counter()
    for seed in range(40):
        run = Run(made, seed, careless=True)
        run.run()
        total += run.check()
    print(dict(total))
    assert total["repaired"] > 40
