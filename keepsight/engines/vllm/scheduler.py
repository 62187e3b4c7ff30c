"""The scheduler that makes a request with a method into several, and lets them travel together.

The expert is the client's request. For each view of its methods an amateur is added: a request of its own that nobody sees.
All of them are admitted in one step with whole prompts, preempted together and ended together. ``Contrast`` gives them one
row of scores, so that they draw the same token at the same step.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.request import Request, RequestStatus

from keepsight.engines.vllm.placing import ROW, SPEC, TEXT_ONLY, check_arguments, plan
from keepsight.engines.vllm.seams import check_config, check_installed, check_scheduler
from keepsight.engines.vllm.views import Prompt, check_pictures, translate
from keepsight.errors import InputError, KeepsightError

logger = init_logger("vllm.keepsight")

MARK = "~keepsight-"
"""What follows the expert's id in an amateur's."""
MOST_REPAIRS = 16
"""How often a set may lose a step in a row before its request fails. Repairs are rare, and so many never needed."""


@dataclass
class Members:
    """The requests of one set.

    Args:
        ids: the expert's id and those of its amateurs.
        repairs: steps that were thrown away since the set last went on.
    """

    ids: tuple[str, ...]
    repairs: int = 0

    @property
    def expert(self) -> str:
        return self.ids[0]


@dataclass
class Counts:
    """What the scheduler did, for tests and logs."""

    sets: int = 0
    held: int = 0
    unchunked: int = 0
    preempted: int = 0
    repaired: int = 0
    failed: int = 0
    refused: int = 0


@dataclass
class _Step:
    """What is known of the step that is being scheduled."""

    admitting: set[str] = field(default_factory=set)
    """Members of a set that was begun and must be admitted before anybody else."""
    closed: bool = False
    """Whether nobody else is admitted: a set waits for room, or some were preempted."""
    tokens: int = 0
    embeds: int = 0


class PairScheduler(AsyncScheduler):  # type: ignore[misc]
    """vLLM's own scheduler, which lets the requests of a set travel together. Other requests are scheduled as ever.

    A set of which one request alone would draw a token loses that step, all of them alike. So a wrong token is
    impossible; at worst a request fails.

    Raises:
        UnsupportedEngine: at start-up, under a vLLM or a setting that is not supported.
    """

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        check_installed()
        check_config(vllm_config)
        super().__init__(vllm_config, *args, **kwargs)
        check_scheduler(self)
        self.counts = Counts()
        self._config = vllm_config.model_config.hf_config
        self._sets: dict[str, Members] = {}
        self._refused: set[str] = set()
        self._step = _Step()

    # Arrival

    def add_request(self, request: Any) -> None:
        """Adds a request, and its amateurs where it names methods. A request that cannot be served fails alone."""
        arguments = self._arguments(request)
        if request.request_id in self.requests or not any(str(key).startswith(SPEC) for key in arguments):
            super().add_request(request)
            return
        try:
            amateurs = self._amateurs(request, arguments)
        except Exception as error:  # an exception here would end the engine, and every other request with it
            self._refuse(request, error)
            return
        super().add_request(request)
        for amateur in amateurs:
            super().add_request(amateur)
        if amateurs:
            self.counts.sets += 1
            members = Members((request.request_id, *(one.request_id for one in amateurs)))
            self._sets.update(dict.fromkeys(members.ids, members))

    @staticmethod
    def _arguments(request: Any) -> dict[str, Any]:
        params = request.sampling_params
        return {} if params is None else params.extra_args or {}

    def _refuse(self, request: Any, error: Exception) -> None:
        known = isinstance(error, KeepsightError)
        logger.warning("keepsight: request %s fails: %s", request.request_id, error, exc_info=not known)
        self.counts.refused += 1
        self._refused.add(request.request_id)
        super().add_request(request)
        self.grammar_compile_error_reqs.add(request.request_id)

    def _amateurs(self, request: Any, arguments: dict[str, Any]) -> list[Any]:
        """The amateurs of a request, which becomes the first of their set; none where its methods are off.

        Raises:
            KeepsightError: the request cannot be served.
        """
        methods = check_arguments(arguments)
        if methods is None:
            return []
        if request.resumable or request.prompt_token_ids is None or request.prompt_embeds is not None:
            raise InputError("prompts that go on, or that come as embeddings, cannot be used with a method")
        prompt = Prompt(list(request.prompt_token_ids), list(request.mm_features))
        check_pictures(prompt)
        made = plan(methods, self._config)
        if not made.views:
            return []
        spec, text_only = arguments[SPEC], arguments.get(TEXT_ONLY)
        prompts = [translate(view, prompt, self._config, text_only) for view in made.views]
        self._check_size(request, prompts)
        _own_params(request)
        rows = [_amateur(request, number, spec, one) for number, one in enumerate(prompts, 1)]
        request.sampling_params.extra_args = {**arguments, ROW: (request.request_id, 0, spec)}
        return rows

    def _check_size(self, request: Any, prompts: list[Prompt]) -> None:
        """All prompts of a set must fit into one step of an empty engine.

        Raises:
            InputError: they never can; the message says which setting to raise.
        """
        lengths = [request.num_tokens, *(len(one.ids) for one in prompts)]
        embeds = [request.mm_features, *(one.features for one in prompts)]
        needed = (
            (len(lengths), self.max_num_active_reqs, "requests", "--max-num-seqs"),
            (sum(lengths), self.max_num_scheduled_tokens, "prompt tokens", "--max-num-batched-tokens"),
            (sum(map(_embeds, embeds)), self._encoder_room(), "picture tokens", "--max-num-batched-tokens"),
            (
                sum(map(self._blocks, lengths)),
                self._all_blocks(),
                "KV cache blocks",
                "--gpu-memory-utilization",
            ),
        )
        for wanted, most, what, setting in needed:
            if wanted > most:
                raise InputError(
                    f"the request and its amateurs need {wanted} {what} in one step and there are {most}: raise {setting}"
                )
        if longest := max(lengths) > self.max_model_len and max(lengths):
            raise InputError(
                f"a prompt of {longest} tokens is longer than --max-model-len {self.max_model_len}"
            )

    # Admission: all requests of a set in one step, with whole prompts

    def _handle_blocked_waiting_request(self, request: Any) -> bool:
        step, own = self._step, request.request_id
        if step.admitting:
            # The room that is left belongs to the rest of a set
            if own not in step.admitting or not super()._handle_blocked_waiting_request(request):
                return False
            step.admitting.discard(own)
            return True
        if step.closed or own in self._refused:
            return False
        if not super()._handle_blocked_waiting_request(request):
            return False
        members = self._sets.get(own)
        if members is None:
            return True
        if not self._ready(members):
            return False
        if not self._room(members):
            self.counts.held += 1
            # Whoever comes later would otherwise take the room that the set waits for
            step.closed = True
            return False
        step.admitting = set(members.ids) - {own}
        return True

    def _ready(self, members: Members) -> bool:
        """Whether all requests of a set wait at the same token, with nothing on its way."""
        found = [self.requests.get(one) for one in members.ids]
        return (
            all(
                one is not None
                and one.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED)
                and not one.num_stale_output_tokens
                for one in found
            )
            and len({one.num_output_tokens for one in found}) == 1
        )

    def _room(self, members: Members) -> bool:
        """Whether a set fits into what is left of this step. One that never will fails."""
        found = [self.requests[one] for one in members.ids]
        free = self.kv_cache_manager.block_pool.get_num_free_blocks()
        blocks = sum(self._blocks(one.num_tokens + 1) for one in found)
        watermark = self.kv_cache_manager.watermark_blocks
        active = len(self.running) + self.num_waiting_for_streaming_input
        fits = (
            active + len(found) <= self.max_num_active_reqs
            and self._step.tokens + sum(one.num_tokens for one in found) <= self.max_num_scheduled_tokens
            and self._step.embeds + sum(_embeds(one.mm_features) for one in found) <= self._encoder_room()
            and blocks + watermark <= free
        )
        if not fits and not self.running and not self._step.tokens and self._nothing_held():
            self._fail(members, "it has grown too long for one step of an empty engine")
        return fits

    def _nothing_held(self) -> bool:
        return bool(self.kv_cache_manager.block_pool.get_num_free_blocks() >= self._all_blocks())

    def _all_blocks(self) -> int:
        # One block of the pool is vLLM's own
        return int(self.kv_cache_manager.block_pool.num_gpu_blocks) - 1

    def _blocks(self, tokens: int) -> int:
        """At most this many blocks of the KV cache hold ``tokens``; prefixes that are cached already need none."""
        return sum(-(-tokens // size) for size in self._block_sizes())

    def _block_sizes(self) -> list[int]:
        return [int(one.block_size) for one in self.kv_cache_manager.coordinator.single_type_managers]

    def _encoder_room(self) -> int:
        return int(min(self.max_num_encoder_input_tokens, self.encoder_cache_manager.num_freeable_slots))

    def _reserve_prefill_lookahead(self, request: Any, num_computed_tokens: int, num_new_tokens: int) -> int:
        new = int(super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens))
        left = request.num_tokens + request.num_output_placeholders - num_computed_tokens
        if request.request_id in self._sets and 0 < new < left:
            # A prompt that is read in pieces would end in another step than those of its set
            self.counts.unchunked += 1
            new = 0
        self._step.tokens += new
        self._step.embeds += sum(
            one.mm_position.get_num_embeds()
            for one in request.mm_features
            if new and num_computed_tokens < one.mm_position.offset + one.mm_position.length
        )
        return new

    # Each step

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        self._step = _Step()
        self._fail_broken()
        self._step.closed = self._make_room()
        output = super().schedule(*args, **kwargs)
        self._repair(output)
        return output

    def _fail_broken(self) -> None:
        """Sets that wait at different tokens with nothing on its way can never go on."""
        for members in self._all_sets():
            found = [self.requests.get(one) for one in members.ids]
            if any(
                one is None or one.status == RequestStatus.RUNNING or one.num_stale_output_tokens
                for one in found
            ):
                continue
            if len({one.num_output_tokens for one in found if one is not None}) > 1:
                self._fail(members, "its requests have come apart")

    def _make_room(self) -> bool:
        """Preempts whole sets before the base class would preempt one request of them. Returns whether it did."""
        preempted = False
        while self.running:
            needed = sum(map(self._new_blocks, self.running))
            if needed <= self.kv_cache_manager.block_pool.get_num_free_blocks():
                break
            victims = self._together(self._victim())
            if len(victims) == len(self.running):
                break
            preempted = True
            for one in victims:
                self.running.remove(one)
                self._preempt_request(one, time.monotonic())
                self.counts.preempted += 1
        return preempted

    def _victim(self) -> Any:
        if self.policy == SchedulingPolicy.PRIORITY:
            return max(self.running, key=lambda one: (one.priority, one.arrival_time))
        return self.running[-1]

    def _together(self, request: Any) -> list[Any]:
        """A request with the others of its set, those that run, the expert last."""
        members = self._sets.get(request.request_id)
        if members is None:
            return [request]
        found = (self.requests.get(one) for one in reversed(members.ids))
        return [one for one in found if one is not None and one.status == RequestStatus.RUNNING]

    def _new_blocks(self, request: Any) -> int:
        """How many blocks the next step of a running request may need."""
        have = request.num_computed_tokens
        left = request.num_tokens_with_spec + request.num_output_placeholders - have
        # A long prompt may be read in pieces, and takes what there is
        new = min(max(left, 1), self.max_num_scheduled_tokens)
        return sum(-(-(have + new) // size) - -(-have // size) for size in self._block_sizes())

    def _repair(self, output: Any) -> None:
        """Throws the step away for a set of which some requests alone would draw a token, and starts it again together."""
        seen: set[str] = set()
        for own in output.num_scheduled_tokens:
            members = self._sets.get(own)
            if members is None or members.expert in seen:
                continue
            seen.add(members.expert)
            if self._in_step(members, output.num_scheduled_tokens):
                members.repairs = 0
                continue
            self.counts.repaired += 1
            members.repairs += 1
            for one in filter(None, map(self.requests.get, reversed(members.ids))):
                if one.status == RequestStatus.RUNNING:
                    self.running.remove(one)
                    self._preempt_request(one, time.monotonic(), drop_stale_output=True)
                elif one.num_stale_output_tokens:
                    one.drop_stale_output = True
            if members.repairs > MOST_REPAIRS:
                self._fail(members, "its requests could not be scheduled together")

    def _in_step(self, members: Members, scheduled: dict[str, int]) -> bool:
        found = [self.requests.get(one) for one in members.ids]
        if any(
            one is None or one.request_id not in scheduled or one.status != RequestStatus.RUNNING
            for one in found
        ):
            return False
        places = {
            (one.is_prefill_chunk, one.num_output_tokens + one.num_output_placeholders)
            for one in found
            if one is not None
        }
        return len(places) == 1 and not next(iter(places))[0]

    # Results

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> dict[int, Any]:
        self._compare(scheduler_output, model_runner_output)
        experts = {one.expert: self.requests[one.expert].client_index for one in self._all_sets()}
        outputs: dict[int, Any] = super().update_from_output(scheduler_output, model_runner_output)
        for per_client in outputs.values():
            per_client.outputs = [one for one in per_client.outputs if MARK not in one.request_id]
            if per_client.finished_requests:
                per_client.finished_requests = {
                    one for one in per_client.finished_requests if MARK not in one
                }
        for members in self._all_sets():
            alive = [one for one in members.ids if one in self.requests]
            if len(alive) == len(members.ids):
                continue
            expert_lives = members.expert in alive
            if expert_lives:
                self._note_failure(members, "an amateur ended before it")
            self.finish_requests(alive, RequestStatus.FINISHED_ERROR)
            if expert_lives:
                told = EngineCoreOutput(members.expert, [], finish_reason=FinishReason.ERROR)
                client = experts[members.expert]
                outputs.setdefault(client, EngineCoreOutputs()).outputs.append(told)
        self._forget()
        return outputs

    def _compare(self, scheduler_output: Any, model_runner_output: Any) -> None:
        """The requests of a set must have drawn the same token. Where they have not, none of them keeps it, and all fail."""
        drawn, index = model_runner_output.sampled_token_ids, model_runner_output.req_id_to_index
        if not drawn:
            return
        seen: set[str] = set()
        for own in scheduler_output.num_scheduled_tokens:
            members = self._sets.get(own)
            if members is None or members.expert in seen:
                continue
            seen.add(members.expert)
            tokens = {self._kept(one, drawn, index) for one in members.ids}
            if len(tokens) == 1:
                continue
            for one in members.ids:
                if one in index:
                    drawn[index[one]] = []
            self._fail(members, "its requests drew different tokens")

    def _kept(self, own: str, drawn: Any, index: dict[str, int]) -> tuple[int, ...]:
        """The tokens that a request drew and will keep."""
        request = self.requests.get(own)
        dropped = request is None or (request.num_stale_output_tokens and request.drop_stale_output)
        return () if dropped or own not in index else tuple(drawn[index[own]])

    # The end

    def finish_requests(self, request_ids: Any, finished_status: Any) -> list[Any]:
        """Ends requests, each with the others of its set. Returns those that are not amateurs."""
        if isinstance(request_ids, str):
            request_ids = [request_ids]
        if request_ids is not None:
            request_ids = {one for own in request_ids for one in self._ids_with(own)}
        done = super().finish_requests(request_ids, finished_status)
        self._forget()
        return [one for one in done if MARK not in one.request_id]

    def _ids_with(self, own: str) -> Iterable[str]:
        members = self._sets.get(own)
        return (own,) if members is None else members.ids

    def _fail(self, members: Members, why: str) -> None:
        """Ends a set with an error when the next results come."""
        if members.expert in self.grammar_compile_error_reqs:
            return
        self._note_failure(members, why)
        self._refused.update(members.ids)
        self.grammar_compile_error_reqs.add(members.expert)

    def _note_failure(self, members: Members, why: str) -> None:
        self.counts.failed += 1
        logger.error("keepsight: request %s fails: %s", members.expert, why)

    def _all_sets(self) -> Iterator[Members]:
        """Every set once."""
        return iter([members for own, members in self._sets.items() if own == members.expert])

    def _forget(self) -> None:
        for members in self._all_sets():
            if not any(one in self.requests for one in members.ids):
                for one in members.ids:
                    del self._sets[one]
        self._refused &= self.requests.keys()


def _embeds(features: Iterable[Any]) -> int:
    """How many tokens of pictures a prompt has."""
    return sum(one.mm_position.get_num_embeds() for one in features)


def _own_params(request: Any) -> None:
    """Gives a request sampling parameters of its own, with a seed: its amateurs must draw what it draws."""
    # Several answers of one prompt share an object, and ``clone`` may return the very same
    request.sampling_params = params = copy.copy(request.sampling_params)
    if params.seed is None:
        params.seed = random.getrandbits(48)


def _amateur(request: Any, number: int, spec: str, prompt: Prompt) -> Any:
    """The amateur that goes with a request. What the client asked about scores is the expert's: an amateur's are raw."""
    params = copy.copy(request.sampling_params)
    params.extra_args = {ROW: (request.request_id, number, spec)}
    params.logprobs = params.logprob_token_ids = params.structured_outputs = None
    params.logit_bias = params.allowed_token_ids = params.bad_words = params._bad_words_token_ids = None
    params.min_tokens = 0
    return Request(
        request_id=f"{request.request_id}{MARK}{number}",
        prompt_token_ids=prompt.ids,
        sampling_params=params,
        pooling_params=None,
        client_index=request.client_index,
        arrival_time=request.arrival_time,
        mm_features=prompt.features,
        lora_request=request.lora_request,
        cache_salt=request.cache_salt,
        priority=request.priority,
        block_hasher=request._block_hasher,
    )
