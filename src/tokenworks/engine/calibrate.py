"""Measures a running engine from outside: lone prompts, groups of streams, and loads to judge the fit by.

What is fitted and what judges it are interleaved in time, so that a machine that is busy for a while is so for both;
everything runs twice and the quicker run counts, because other work on a machine only ever slows it down.
Prompts are words that no cache has seen; lengths are what the engine says it counted.
"""

from __future__ import annotations

import asyncio
import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import NamedTuple

import msgspec

from tokenworks.core.clock import Clock, utc_text
from tokenworks.core.errors import BadRequest, EngineFailed, TokenworksError
from tokenworks.core.units import NS_PER_S
from tokenworks.core.words import Request, Usage
from tokenworks.engine.openai_compatible import OpenAICompatible
from tokenworks.engine.perf.calibrated import Asked, Calibration, Check, Figures, Seen, Target, fit_speed, replay

BUDGET_S = 160.0
"""For all of it; what is not measured by then is left out."""
PATIENCE_S = 60.0
"""For the first answer."""
STREAMS, STREAMS_MAX = 16, 256
LONE = (12, 128, 384)
"""Words in the prompts of requests that come alone."""
LONE_OUTPUT, GROUP_WORDS, GROUP_OUTPUT = 24, 24, 32
CHECK_WORDS, CHECK_OUTPUT, CHECK_ROUNDS = 72, 40, 2
PIECES, PIECE_MARKS_MIN = 3, 4
"""A group's time together is cut into so many measurements, of so many chunks at least."""
CHUNKS_MAX = 1 << 20
WORDS = "river stone cloud market signal garden window paper engine bridge winter letter ocean train glass moon".split()  # noqa: SIM905
Report = Callable[[str], None]
Meter = Callable[[], int | None]
"""Microjoules that the site's meter has counted; None: it cannot be read."""


class Answer(NamedTuple):
    """One stream as its client saw it."""

    start_ns: int
    marks: list[tuple[int, int]]
    """When, and how many chunks of output there were by then."""
    asked: Asked

    @property
    def ttft_s(self) -> float:
        """To the first token."""
        return (self.marks[0][0] - self.start_ns) / NS_PER_S

    @property
    def tpot_s(self) -> float:
        """(end - first token) / (output - 1)."""
        return (self.marks[-1][0] - self.marks[0][0]) / NS_PER_S / max(1, self.asked.output - 1)

    def made(self, at_ns: int) -> float:
        """Tokens by then; a chunk may hold several."""
        found = bisect_right(self.marks, (at_ns, CHUNKS_MAX))
        return self.marks[found - 1][1] / self.marks[-1][1] * self.asked.output if found else 0.0


Users = Sequence[Sequence[Answer]]


def figures(users: Users) -> Figures:
    """What a closed loop came to."""
    every = [answer for user in users for answer in user]
    seconds = (max(a.marks[-1][0] for a in every) - min(a.start_ns for a in every)) / NS_PER_S
    tokens_s = sum(a.asked.output for a in every) / seconds
    return Figures(tokens_s=tokens_s, tpot_s=fmean(a.tpot_s for a in every), ttft_s=fmean(a.ttft_s for a in every))


def first_token(answer: Answer) -> Seen:
    """Of a lone request: one iteration with its prompt."""
    new = answer.asked.prompt - answer.asked.cached
    return Seen(seconds=answer.ttft_s, amounts=(1, 0, 0, new, new * (answer.asked.cached + new / 2), 1))


def together(answers: Sequence[Answer]) -> Iterator[Seen]:
    """The time in which all streams decode, in pieces. None when they never do: the engine has fewer seats."""
    begin, end = max(a.marks[0][0] for a in answers), min(a.marks[-1][0] for a in answers)
    lead = answers[0]
    marks = [mark for mark in lead.marks if begin <= mark[0] <= end]
    size = max(PIECE_MARKS_MIN, len(marks) // PIECES)
    for n in range(0, len(marks) - size, size):
        (from_ns, before), (to_ns, after) = marks[n], marks[n + size]
        steps = (after - before) / lead.marks[-1][1] * lead.asked.output
        context = sum(a.asked.prompt + a.made((from_ns + to_ns) // 2) for a in answers)
        amounts = (steps, steps * len(answers), steps * context, 0.0, 0.0, 0.0)
        yield Seen(seconds=(to_ns - from_ns) / NS_PER_S, amounts=amounts)


def overlap(answers: Sequence[Answer]) -> int:
    """The most streams that were between their first and last token at once."""
    return max(sum(b.marks[0][0] <= a.marks[0][0] < b.marks[-1][0] for b in answers) for a in answers)


class Probe:
    """Asks one engine for streams of given lengths."""

    def __init__(self, engine: OpenAICompatible, clock: Clock, model: str) -> None:
        self._engine, self._model, self._salt, self._asked = engine, model, clock.now_ns(), 0
        self.clock = clock
        self._extra: dict[str, object] = {"ignore_eos": True}
        """Understood by llama.cpp, vLLM and SGLang: an answer is as long as it was asked to be."""

    async def first(self, patience_s: float) -> None:
        """Find out whether it answers at all, and what it understands. Raises one TokenworksError saying what not."""
        try:
            async with asyncio.timeout(patience_s):
                try:
                    await self.ask(8, 4)
                except BadRequest:
                    self._extra = {}
                    await self.ask(8, 4)
        except TimeoutError:
            raise EngineFailed(f"The engine gave no answer to a short question within {patience_s:g} s.") from None

    async def ask(self, words: int, output: int) -> Answer:
        """One stream. Raises as ``Adapter.stream``, and EngineFailed when tokens or their count are missing."""
        self._asked += 1
        marks: list[tuple[int, int]] = []
        start_ns = self.clock.now_ns()
        stream = await self._engine.stream(self._request(words, output))

        def sink(_: bytes) -> None:
            if stream.chunks > (marks[-1][1] if marks else 0):
                marks.append((self.clock.now_ns(), stream.chunks))

        try:
            await stream.relay(sink, CHUNKS_MAX)
        finally:
            await stream.abort()
        if not marks:
            raise EngineFailed("The engine's answer has no output: there is nothing to measure.")
        if (used := stream.usage) is None:
            raise EngineFailed("The engine does not report usage in its streams, so the prompts' lengths are unknown.")
        return Answer(start_ns, marks, _asked(used))

    async def group(self, streams: int, words: int, output: int) -> list[Answer]:
        """Several at once."""
        return await asyncio.gather(*(self.ask(words, output) for _ in range(streams)))

    async def loop(self, streams: int) -> Users:
        """A closed loop of users; lengths vary by a fifth around the middle one."""

        async def user(number: int) -> list[Answer]:
            parts = [0.8 + 0.4 * ((number + turn * 0.618) * 0.7549 % 1) for turn in range(CHECK_ROUNDS)]
            return [await self.ask(round(part * CHECK_WORDS), round(part * CHECK_OUTPUT)) for part in parts]

        return await asyncio.gather(*map(user, range(streams)))

    def _request(self, words: int, output: int) -> Request:
        digits = hashlib.shake_256(f"{self._salt} {self._asked}".encode()).hexdigest(words)
        text = " ".join(WORDS[int(digit, 16)] for digit in digits[:words])
        body = {
            "model": self._model, "messages": [{"role": "user", "content": text}], "max_tokens": output,
            "stream": True, "stream_options": {"include_usage": True}, **self._extra,
        }  # fmt: skip
        return Request(
            id="calibration", endpoint="chat", model=self._model, body=msgspec.json.encode(body), stream=True,
            show_usage=True, input_max=len(text), output_max=output, choices=1, needs=frozenset(),
            arrived_ns=self.clock.now_ns(),
        )  # fmt: skip


def _asked(used: Usage) -> Asked:
    return Asked(prompt=used.input + used.cached_input, cached=used.cached_input, output=used.output + used.reasoning)


class Measured:
    """What came together so far."""

    def __init__(self, probe: Probe, meter: Meter) -> None:
        self._probe, self._meter = probe, meter
        self.groups: dict[tuple[int, int], tuple[int, list[Seen]]] = {}
        """By streams and words: the quickest group, how long it took, and what it showed."""
        self.seats = 1
        self.loads: dict[int, tuple[Users, int | None]] = {}
        """By streams: the quickest closed loop, with the power drawn in it, in mW."""

    async def fit(self, streams: int, words: int) -> None:
        """One more measurement to be fitted."""
        if streams > 2 * self.seats:
            return  # fewer did not find seats either
        begin_ns = self._probe.clock.now_ns()
        answers = await self._probe.group(streams, words, LONE_OUTPUT if streams == 1 else GROUP_OUTPUT)
        took_ns = self._probe.clock.now_ns() - begin_ns
        self.seats = max(self.seats, overlap(answers))
        if took_ns < self.groups.get((streams, words), (took_ns + 1, []))[0]:
            seen = [first_token(answers[0])] if streams == 1 else []
            self.groups[streams, words] = took_ns, [*seen, *together(answers)]

    async def check(self, streams: int, _: int) -> None:
        """One load that is kept out of the fit."""
        begin_ns, before = self._probe.clock.now_ns(), self._meter()
        users = await self._probe.loop(streams)
        after, took_ns = self._meter(), self._probe.clock.now_ns() - begin_ns
        metered = before is not None and after is not None and after > before  # the counter may have begun again
        power_mw = round((after - before) * 1e6 / took_ns) if metered and after and before is not None else None
        if streams not in self.loads or figures(users).tokens_s > figures(self.loads[streams][0]).tokens_s:
            self.loads[streams] = users, power_mw

    async def all(self, streams: int, report: Report) -> None:
        """Everything, as far as the budget goes. Raises EngineFailed when it is not enough to fit and to judge."""
        levels = sorted({1 << n for n in range(1, streams.bit_length())} | ({streams} - {1}))
        fits = [(self.fit, 1, words) for words in LONE] + [(self.fit, level, GROUP_WORDS) for level in levels]
        checks = [(self.check, level, CHECK_WORDS) for level in sorted({1, min(4, streams), streams})]
        steps = 2 * [*fits, *checks]
        try:
            async with asyncio.timeout(BUDGET_S):
                for n, (step, level, words) in enumerate(steps):
                    report(f"{n / len(steps):4.0%}  to {step.__name__}: {level} at once, prompts of {words} words")
                    await step(level, words)
        except TimeoutError:
            report(f"      {BUDGET_S:g} s are over: the rest is left out")
        if len(self.loads) < len(checks):
            raise EngineFailed(f"The engine is too slow to be measured with {streams} streams in {BUDGET_S:g} s.")


async def calibrate(
    probe: Probe, target: Target, report: Report, *, streams: int = STREAMS, meter: Meter = lambda: None,
    patience_s: float = PATIENCE_S,
) -> Calibration:  # fmt: skip
    """Measure and fit. Raises BadRequest, or the one TokenworksError that says how the engine does not serve."""
    if not 1 <= streams <= STREAMS_MAX:
        raise BadRequest(f"a calibration sends 1 to {STREAMS_MAX} streams at once, not {streams}")
    measured = Measured(probe, meter)
    try:
        await probe.first(patience_s)
        await measured.all(streams, report)
    except TokenworksError as error:
        error.message = f"cannot calibrate {target.url or target.model}: {error.message}"
        raise
    seen = [one for _, found in measured.groups.values() for one in found]
    speed, fit_error = fit_speed(seen)
    checks = []
    for users, power_mw in measured.loads.values():
        asked = [[answer.asked for answer in user] for user in users]
        told, batch = replay(speed, measured.seats, asked)
        checks.append(Check(users=asked, measured=figures(users), predicted=told, batch=batch, power_mw=power_mw))
    return Calibration(
        target=target, made=utc_text(probe.clock.now_ns()), speed=speed, fit_error=fit_error, streams=streams,
        measurements=len(seen), seats=measured.seats, checks=tuple(checks),
    )  # fmt: skip
