"""Runs benchmarks, each in a process of its own, and writes what they found into `benchmarks/RESULTS.md`.

    python -m benchmarks [names …] [-- options of theirs]

Without names all of them run, and the file is made anew; with names the other sections stay. On a machine with a GPU the file is
`RESULTS-GPU.md`. The records that it was written from are in `build/bench` or `build/bench-gpu`.
"""
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.timing import RECORD

HERE = Path(__file__).parent
CARD = torch.cuda.get_device_name() if torch.cuda.is_available() else ''
RECORDS = HERE.parent/'build'/('bench-gpu' if CARD else 'bench')
RESULTS = HERE/('RESULTS-GPU.md' if CARD else 'RESULTS.md')
NOT_BENCHMARKS = {'__init__', '__main__', 'gpu', 'timing', 'images', 'noise', 'options', 'heads', 'photographs'}
OF_ANOTHER_MACHINE = {'imports', 'kernels', 'scaling', 'statistics'} if CARD else {'steps', 'paper_run'}
VERSIONS = ('torch', 'fastai', 'timm', 'numpy', 'pillow', 'easyfsl', 'zennit', 'captum')


def ended_well(command: list[str], seconds: float | None = None, **env: str) -> bool:
    "Did the command end without an error, within this time? If it takes longer, it is killed with all that it has started"
    process = subprocess.Popen(command, start_new_session=True, env=os.environ | env)
    try: return not process.wait(seconds)
    except subprocess.TimeoutExpired: return False
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run(name: str, options: list[str], seconds: float | None = None) -> bool:
    "Did the benchmark end well, and within this time? If it did, its new record replaces the old one"
    RECORDS.mkdir(parents=True, exist_ok=True)
    record = RECORDS/f'{" ".join([name, *options])}.jsonl'
    part = record.with_suffix('.part')
    part.unlink(missing_ok=True)
    command = [sys.executable, '-m', f'benchmarks.{name}', *options]  # of its own, not inheriting threads and memory of another
    well = ended_well(command, seconds, **{RECORD: str(part)})
    if well and part.exists():
        commit = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=HERE, capture_output=True, text=True).stdout.strip()
        record.write_text(json.dumps(dict(note=f'Of commit {commit}.')) + '\n' + part.read_text())
        part.unlink()
    return well


def machine() -> str:
    "This machine in a line: its processor, number of cores, and versions of the libraries"
    cpuinfo = Path('/proc/cpuinfo')
    names = [line.split(':')[1].strip() for line in (cpuinfo.read_text().splitlines() if cpuinfo.exists() else [])
             if line.startswith('model name')]
    versions = ', '.join(f'{name} {version(name)}' for name in VERSIONS)
    processor = names[0] if names else platform.machine()
    return (f'{f"{CARD}, CUDA {torch.version.cuda}. " if CARD else ""}{processor}, {os.cpu_count()} cores. '
            f'Python {platform.python_version()}, {versions}.')


def row(name: str, seconds: float, ratio: float, limit: float | None) -> str:
    promised = '' if limit is None else f'{limit:.3g} | {"met" if ratio <= limit else "**MISSED**"}'
    took = f'{seconds:.1f} s' if seconds >= 10 else f'{1e3 * seconds:.4g} ms'
    speed = f' ({1/ratio:.3g} times as fast)' if ratio < .5 else ''
    return f'| {name} | {took} | {ratio:.3g}{speed} | {promised or " | "} |'


def section(record: Path) -> str:
    "What a benchmark found, as Markdown"
    lines = []
    for entry in map(json.loads, record.read_text().splitlines()):
        if 'note' in entry: lines += [entry['note'].strip(), '']
        else:
            lines += [f'**{entry["title"]}**', '', '| | time | ratio | limit | |', '|---|---|---|---|---|']
            lines += [row(*r) for r in entry['rows']] + ['']
    return '\n'.join(lines).strip()


def write_results(
    keep: bool = False, # Do sections without a record stay as the file has them?
) -> None:
    "All records as Markdown"
    written = RESULTS.read_text().split('\n## ')[1:] if keep and RESULTS.exists() else []
    sections = {name: text.strip() for name, text in (part.split('\n', 1) for part in written)}
    sections |= {record.stem: section(record) for record in RECORDS.glob('*.jsonl')}
    head = f"""# Measured{' on a GPU' if CARD else ''}

Written by `python -m benchmarks`. A ratio is the median over paired runs of the time of a line
to that of the first line of its table; limits are promises. On one thread the time of the process counts.

{machine()}"""
    RESULTS.write_text('\n\n'.join([head, *(f'## {name}\n\n{sections[name]}' for name in sorted(sections))]) + '\n')


def main(args: list[str]) -> None:
    at = args.index('--') if '--' in args else len(args)
    if not args: shutil.rmtree(RECORDS, ignore_errors=True)
    names = args[:at] or sorted(p.stem for p in HERE.glob('*.py') if p.stem not in NOT_BENCHMARKS | OF_ANOTHER_MACHINE)
    failed = [name for name in names if not run(name, args[at + 1:])]
    if set(names) != {'gpu'}: write_results(keep=bool(args))  # which writes its own
    if failed: sys.exit(f'failed: {", ".join(failed)}')


if __name__ == '__main__': main(sys.argv[1:])
