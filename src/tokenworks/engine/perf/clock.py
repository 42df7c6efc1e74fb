"""The iteration clock: a continuous-batching replica simulated by jumping over iterations that are alike.

Every decoding sequence gains one token per iteration, so one that starts to decode at iteration V with m tokens left
ends at V + m. While no prompt is computed, the batch stays n and the summed contexts S grow by n, so k iterations take
k·a + b·(k·S + n·k(k-1)/2), with a the time of an iteration without its contexts and b that of a token of context; which
one runs at a given time is a quadratic. Events are only arrivals, prompt chunks and completions. Exact (tests compare
it with a loop that takes every token by itself) as long as a pace is linear in the contexts.

Scheduling is that of vLLM and alike: first come first served, prompts in chunks that share an iteration with decoding,
a sequence admitted when its whole cache fits (so nothing is preempted).
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from math import ceil, sqrt
from typing import Protocol

import msgspec

from tokenworks.core.errors import BadRequest
from tokenworks.core.words import Word
from tokenworks.engine.perf.iteration import Batch


class Pace(Protocol):
    """Seconds of one iteration: ``base`` and ``per_context`` for each token of context of the decoding sequences."""

    per_context: float

    def base(self, sequences: int, prompt: int, prompt_context: float) -> float:
        """For so many decoding sequences and prompt tokens; ``prompt_context`` as in Batch."""


class Limits(Word, frozen=True):
    """What a replica can hold."""

    seats: int
    """Sequences at once, decoding or having their prompt computed."""
    cache_tokens: int
    """Tokens of context that fit at once."""
    chunk_tokens: int = 8192
    """Tokens in one iteration, each decoding sequence counting one."""


class Job(Word, frozen=True):
    """One request."""

    id: int
    arrival_s: float
    prompt: int
    output: int
    """Tokens, the first one included."""
    hit: int = 0
    """Leading prompt tokens whose cache is there, shared with others; the last token is always computed."""
    load_s: float = 0.0
    """Time that its first iteration lasts longer for all, such as to swap a LoRA adapter in."""

    @property
    def room(self) -> int:
        """Tokens of cache that are its own."""
        return self.prompt - self.hit + self.output


class Done(Word, frozen=True):
    """A finished request."""

    job: Job
    first_s: float
    """When its first token was there."""
    end_s: float

    @property
    def ttft_s(self) -> float:
        """From arrival to the first token."""
        return self.first_s - self.job.arrival_s

    @property
    def tpot_s(self) -> float:
        """(end - first token) / (output - 1), the definition used everywhere here; 0 for a single token."""
        return (self.end_s - self.first_s) / max(1, self.job.output - 1)


class Tally(msgspec.Struct):
    """What happened in busy time."""

    busy_s: float = 0.0
    iterations: int = 0
    mixed: int = 0
    """Iterations with prompt tokens."""
    sequences: int = 0
    context: int = 0
    prompt: int = 0
    prompt_context: float = 0.0

    def batch(self) -> Batch:
        """The mean iteration."""
        return Batch(**{name: getattr(self, name) / self.iterations for name in Batch.__struct_fields__})


class Clock:
    """One replica. Time only moves in ``advance``, by whole iterations."""

    def __init__(self, pace: Pace, limits: Limits) -> None:
        if min(limits.seats, limits.cache_tokens, limits.chunk_tokens) < 1 or limits.chunk_tokens <= limits.seats:
            raise BadRequest("a replica needs seats and room, and chunks larger than its seats")
        self.pace, self.limits, self.tally = pace, limits, Tally()
        self.now_s = 0.0
        self._step, self._stall_s = 0, 0.0
        self._waiting: deque[Job] = deque()
        self._filling: deque[tuple[Job, int]] = deque()
        """Admitted jobs and how much of their prompt is there."""
        self._decoding: list[tuple[int, int, Job, float]] = []
        """A heap of (step after which it ends, id, job, time of its first token)."""
        self._context = 0
        self._cached = 0

    def submit(self, job: Job) -> None:
        """Queue a job; arrivals come in order. Raises BadRequest for one that could never fit or is out of order."""
        if not (job.prompt > 0 and job.output > 0 and 0 <= job.hit <= job.prompt):
            raise BadRequest(f"job {job.id}: {job.prompt} prompt tokens ({job.hit} there), {job.output} output tokens")
        if job.room > self.limits.cache_tokens:
            raise BadRequest(f"job {job.id} needs room for {job.room} of {self.limits.cache_tokens} tokens")
        if self._waiting and job.arrival_s < self._waiting[-1].arrival_s:
            raise BadRequest(f"job {job.id} arrives before the one queued last")
        if not (self._waiting or self._filling or self._decoding):
            self.now_s = max(self.now_s, job.arrival_s)
        self._waiting.append(job)

    def advance(self, until_s: float) -> list[Done]:
        """Run iterations that start before ``until_s``; stop after the first that finishes something.

        Afterwards ``now_s`` is the end of the last iteration; it may lie beyond ``until_s``, since none is cut short,
        or before it, when there is nothing to do. A job that arrives during an iteration can join the next one.
        """
        while self.now_s < until_s:
            self._admit()
            if not (self._waiting or self._filling or self._decoding):
                break
            if not (self._filling or self._decoding):
                self.now_s = min(self._waiting[0].arrival_s, until_s)
            elif done := self._mixed() if self._filling else self._jump(until_s):
                return done
        return []

    def _admit(self) -> None:
        while self._waiting and self._waiting[0].arrival_s <= self.now_s:
            job = self._waiting[0]
            cached = self._cached + job.room
            if len(self._decoding) + len(self._filling) >= self.limits.seats or cached > self.limits.cache_tokens:
                return
            self._waiting.popleft()
            self._cached = cached
            self._filling.append((job, min(job.hit, job.prompt - 1)))
            self._stall_s += job.load_s

    def _mixed(self) -> list[Done]:
        """One iteration with prompt tokens: as many as the chunk allows, of the oldest prompts first."""
        sequences, room = len(self._decoding), self.limits.chunk_tokens - len(self._decoding)
        prompt, prompt_context, first = 0, 0.0, []
        while self._filling and room:
            job, there = self._filling.popleft()
            part = min(room, job.prompt - there)
            room, prompt = room - part, prompt + part
            prompt_context += part * (there + part / 2)
            if there + part < job.prompt:
                self._filling.appendleft((job, there + part))
            else:
                first.append(job)
        self._spend(1, sequences, prompt, prompt_context)
        done = self._finish()
        for job in first:
            if job.output == 1:
                self._cached -= job.room
                done.append(Done(job=job, first_s=self.now_s, end_s=self.now_s))
            else:
                heappush(self._decoding, (self._step + job.output - 1, job.id, job, self.now_s))
                self._context += job.prompt + 1
        return done

    def _jump(self, until_s: float) -> list[Done]:
        """All iterations to the next completion, or to the one in which a job arrives or ``until_s`` lies."""
        if self._waiting and self._waiting[0].arrival_s > self.now_s:  # one that is here already waits for room
            until_s = min(until_s, self._waiting[0].arrival_s)
        sequences, most, wait_s = len(self._decoding), self._decoding[0][0] - self._step, until_s - self.now_s
        steps = most
        if self._last(most, sequences, 0, 0.0) > wait_s:
            half = self.pace.per_context * sequences / 2
            linear = self.pace.base(sequences, 0, 0.0) + self.pace.per_context * self._context - half
            steps = max(1, ceil(2 * wait_s / (linear + sqrt(linear * linear + 4 * half * wait_s))) - 1)
            while self._last(steps, sequences, 0, 0.0) < wait_s:  # the root is only as exact as a float
                steps += 1
        self._spend(steps, sequences, 0, 0.0)
        return self._finish()

    def _last(self, steps: int, sequences: int, prompt: int, prompt_context: float) -> float:
        """Seconds of so many iterations from here on."""
        contexts = steps * self._context + sequences * steps * (steps - 1) // 2
        return steps * self.pace.base(sequences, prompt, prompt_context) + self.pace.per_context * contexts

    def _spend(self, steps: int, sequences: int, prompt: int, prompt_context: float) -> None:
        spent, tally = self._stall_s + self._last(steps, sequences, prompt, prompt_context), self.tally
        self._stall_s = 0.0
        tally.busy_s += spent
        tally.iterations += steps
        tally.mixed += prompt > 0
        tally.sequences += steps * sequences
        tally.context += steps * self._context + sequences * steps * (steps - 1) // 2
        tally.prompt += prompt
        tally.prompt_context += prompt_context
        self.now_s += spent
        self._step += steps
        self._context += steps * sequences

    def _finish(self) -> list[Done]:
        done = []
        while self._decoding and self._decoding[0][0] <= self._step:
            _, _, job, first_s = heappop(self._decoding)
            self._context -= job.prompt + job.output
            self._cached -= job.room
            done.append(Done(job=job, first_s=first_s, end_s=self.now_s))
        return done
