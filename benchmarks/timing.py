"""Medians of paired runs: competitors take turns, so that a busy machine slows all of them alike."""
from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

__all__ = ['Timing', 'seconds', 'paired', 'report', 'note']

RECORD = 'FSC_BENCH_RECORD'
"Environment variable: the file that `report` and `note` append to, a line of JSON each, for `RESULTS.md`"


class Timing(NamedTuple):
    "Time of one competitor"
    seconds: float # Median time for a unit of work
    ratio: float # Median over the rounds of its time divided by the first competitor's


def paired(
    competitors: Mapping[str, Callable[[], object]], # Name to function to time; ratios are to the first
    rounds: int = 7, # Each competitor runs once a round
    units: Mapping[str, float] | None = None, # Units of work that a run of a competitor does, such as episodes; default: 1
) -> dict[str, Timing]:
    "Time of each competitor, and its ratio to the first one in the same round; one round more warms up"
    times: dict[str, list[float]] = {name: [] for name in competitors}
    for i in range(rounds + 1):
        for name, run in competitors.items():
            took = seconds(run) / (units or {}).get(name, 1)
            if i: times[name].append(took)
    first = times[next(iter(times))]
    return {name: Timing(statistics.median(t), statistics.median(a / b for a, b in zip(t, first, strict=True)))
            for name, t in times.items()}


def seconds(run: Callable[[], object]) -> float:
    "Seconds of a run: processor time on one CPU thread, else by the clock"
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
    timings: Mapping[str, Timing], # Result of `paired`
    limits: Mapping[str, float] | None = None, # Name to the largest ratio that is promised
) -> None:
    "Print a table of times and ratios, with the promised limits"
    print(f'\n{title}')
    for name, t in timings.items():
        limit = (limits or {}).get(name)
        verdict = '' if limit is None else f'   limit {limit:g}: {"met" if t.ratio <= limit else "MISSED"}'
        print(f'  {name:<52}{1e3 * t.seconds:>10.2f} ms {t.ratio:>9.4g} x{verdict}')
    _record(dict(title=title, rows=[[name, t.seconds, t.ratio, (limits or {}).get(name)] for name, t in timings.items()]))


def note(text: str) -> None:
    "Print a finding that is no table of timings"
    print(text)
    _record(dict(note=text))


def _record(entry: dict) -> None:
    if RECORD not in os.environ: return
    with Path(os.environ[RECORD]).open('a') as f: f.write(json.dumps(entry) + '\n')
