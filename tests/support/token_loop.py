"""The oracle of the iteration clock: a loop that takes every iteration, and every token in it, by itself.

It is written apart from the clock, with lists and no arithmetic of sums, so that the two can only agree by being right.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenworks.engine.perf.clock import Done, Job, Limits, Pace


@dataclass
class Sequence:
    job: Job
    there: int
    made: int = 0
    first_s: float = 0.0


@dataclass
class TokenLoop:
    """Replays jobs that all are known beforehand."""

    pace: Pace
    limits: Limits
    jobs: list[Job]
    done: list[Done] = field(default_factory=list)

    def run(self) -> list[Done]:
        now_s, waiting, running = 0.0, list(self.jobs), list[Sequence]()
        while waiting or running:
            stalled = 0.0
            while waiting and waiting[0].arrival_s <= now_s and self._fits(running, waiting[0]):
                job = waiting.pop(0)
                stalled += job.load_s
                running.append(Sequence(job, there=min(job.hit, job.prompt - 1)))
            if not running:
                now_s = max(now_s, waiting[0].arrival_s)
                continue
            now_s = self._iteration(now_s + stalled, running)
            running = [one for one in running if one.made < one.job.output]
        return self.done

    def _fits(self, running: list[Sequence], job: Job) -> bool:
        taken = sum(one.job.prompt - one.job.hit + one.job.output for one in running)
        room = taken + job.prompt - job.hit + job.output <= self.limits.cache_tokens
        return room and len(running) < self.limits.seats

    def _iteration(self, now_s: float, running: list[Sequence]) -> float:
        decoding = [one for one in running if one.made]
        budget, prompt, prompt_context = self.limits.chunk_tokens - len(decoding), 0, 0.0
        filled = []
        for one in running:
            if one.made:
                continue
            while one.there < one.job.prompt and budget:
                prompt, prompt_context, budget = prompt + 1, prompt_context + one.there + 0.5, budget - 1
                one.there += 1
            if one.there == one.job.prompt and prompt:
                filled.append(one)
        contexts = sum(one.job.prompt + one.made for one in decoding)
        now_s += self.pace.base(len(decoding), prompt, prompt_context) + self.pace.per_context * contexts
        for one in decoding:
            one.made += 1
        for one in filled:
            one.made, one.first_s = 1, now_s
        for one in running:
            if one.made == one.job.output:
                self.done.append(Done(job=one.job, first_s=one.first_s, end_s=now_s))
        return now_s
