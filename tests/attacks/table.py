"What became of attacks, counted by kind"
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ['Outcome', 'rows', 'table']


@dataclass
class Outcome:
    "What became of one attack, and what it cost"
    kind: str
    what: str # 'refused', 'failed', or how it was answered
    message: str = '' # Message of a failure
    mb: float = 0. # Memory that it took beyond what was used before
    seconds: float = 0. # Processor time that it took


def _kinds(outcomes): return {kind: [o for o in outcomes if o.kind == kind] for kind in dict.fromkeys(o.kind for o in outcomes)}
def _count(own, what): return sum(o.what == what for o in own)


def rows(outcomes: Iterable[Outcome]) -> list[tuple[str, int, int, int]]:
    "A row for each kind: its name, and how many were tried, refused and failed"
    return [(kind, len(own), _count(own, 'refused'), _count(own, 'failed')) for kind, own in _kinds(list(outcomes)).items()]


def table(title: str, outcomes: Iterable[Outcome]) -> str:
    "`rows` as text, with memory and time of the worst case of each kind, and the time of the slowest refusal"
    outcomes = list(outcomes)
    lines = [f'{title:32}{"tried":>7}{"refused":>9}{"failed":>8}{"worst MB":>10}{"worst s":>9}{"slowest refusal s":>19}']
    for (kind, *counts), own in zip(rows(outcomes), _kinds(outcomes).values()):
        refusal = max((o.seconds for o in own if o.what == 'refused'), default=0)
        most = max(o.mb for o in own), max(o.seconds for o in own), refusal
        lines.append('{:32}{:7}{:9}{:8}{:10.0f}{:9.2f}{:19.2f}'.format(kind, *counts, *most))
    return '\n'.join([*lines, f'{len(outcomes)} in all, {_count(outcomes, "failed")} failed'])
