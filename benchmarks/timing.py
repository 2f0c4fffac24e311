"""Medians of paired runs: competitors take turns, so that a busy machine slows all of them alike."""
from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

__all__ = ['Timing', 'paired', 'report']


class Timing(NamedTuple):
    "What one competitor took"
    seconds: float # Median
    ratio: float # Median over the rounds of its time by that of the first competitor


def paired(
    competitors: Mapping[str, Callable[[], object]], # Name to what is timed; the first is the measure
    rounds: int = 7, # Each competitor runs once a round
) -> dict[str, Timing]:
    "Time of each competitor, and its ratio to the first one in the same round; one round more warms up"
    times: dict[str, list[float]] = {name: [] for name in competitors}
    for i in range(rounds + 1):
        for name, run in competitors.items():
            seconds = _seconds(run)
            if i: times[name].append(seconds)
    first = times[next(iter(times))]
    return {name: Timing(statistics.median(t), statistics.median(a / b for a, b in zip(t, first, strict=True)))
            for name, t in times.items()}


def _seconds(run: Callable[[], object]) -> float:
    # on one thread the time that the process ran, which other processes do not lengthen
    gpu = torch.cuda.is_available()
    clock = time.process_time if torch.get_num_threads() == 1 and not gpu else time.perf_counter
    if gpu: torch.cuda.synchronize()
    start = clock()
    run()
    if gpu: torch.cuda.synchronize()
    return clock() - start


def report(
    title: str, # What is compared
    timings: Mapping[str, Timing], # Of `paired`
    limits: Mapping[str, float] | None = None, # Name to the largest ratio that is promised
) -> None:
    "Print a table of times and ratios, with the promised limits"
    print(f'\n{title}')
    for name, t in timings.items():
        limit = (limits or {}).get(name)
        verdict = '' if limit is None else f'   limit {limit:g}: {"met" if t.ratio <= limit else "MISSED"}'
        print(f'  {name:<44}{1e3 * t.seconds:>9.1f} ms {t.ratio:>8.2f} x{verdict}')
