"""All that a machine with a GPU has to show, in one call of ten minutes: tests first, then the benchmarks with what they promise.

    python -m benchmarks gpu [-- --minutes 10 --dry]

Each runs in a process of its own, the most important first, and may take the time that is left; the tests take at most a third.
`RESULTS-GPU.md` is written again after each, with the rows of this call only, so that an interrupted call leaves its results.
The call fails if a test fails, or if one of these ratios is larger than promised:

    guided step of a RelationNet             1.5 of its plain step
    both of them, as one CUDA graph          1.15 of the sum of their kernels
    relevance pass of a RelationNet          1.4 of a forward pass that convolves every pair
    relevance pass of a GNNNet               0.1 of its head's forward and backward pass
    LFT step of a RelationNet                1.5 of the sum of its kernels

`--dry` runs all of it on a CPU, at the smallest sizes, checks no limits, and writes into a folder of its own.
"""
from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import __main__ as runner
from benchmarks.options import options

TESTS = ['tests/test_gpu.py', 'tests/data/test_device_cache.py', 'tests/data/test_loader.py',
         'tests/callback/test_graphed_step.py', 'tests/callback/test_synchronisation.py', 'tests/learner/test_fused_adam.py']
BENCHMARKS = [['steps', '--sizes', '84', '--methods', 'RelationNet'], ['explain'],
              ['steps', '--sizes', '224', '--methods', 'RelationNet', '--optimizers', 'fused', '--steps', '12'], ['paper_run'],
              ['lft', '--rounds', '3'],
              ['steps', '--sizes', '84', '--methods', 'GNNNet', 'CrossAttentionNet', '--optimizers', 'fused', '--steps', '12'],
              ['evaluate', '--rounds', '3'], ['adapt', '--archs', 'resnet10']]
SMALL = {'steps': '--sizes 32 --methods RelationNet --optimizers fused --steps 3 --rounds 1',
         'explain': '--size 32 --threads 1 --rounds 1', 'paper_run': '--size 32 --episodes 2 --rounds 1',
         'lft': '--size 32 --steps 1 --rounds 1', 'evaluate': '--size 32 --images 22 --methods ProtoNet --rounds 1',
         'adapt': '--archs --episodes 4 --rounds 1'}
SHARE_OF_TESTS = 1/3
PROMISES = 'a guided step by a plain one', 'a step by the sum of its kernels', 'relevance pass by'
"In the titles of their tables; limits of other tables are promised of a CPU"


def tests(dry: bool) -> list[str]:
    "The command that runs the tests; in a dry run it only collects them"
    return [sys.executable, '-m', 'pytest', '-q', '-m', 'gpu', *(['--collect-only'] if dry else ['-n', '8']), *TESTS]


def missed(records: Path) -> list[str]:
    "A line for each row of the tables that misses its promised limit"
    entries = [json.loads(line) for record in sorted(records.glob('*.jsonl')) for line in record.read_text().splitlines()]
    return [f'{entry["title"]}: {name} {ratio:.3g}, limit {limit:g}' for entry in entries for name, _, ratio, limit in
            entry.get('rows', []) if any(o in entry['title'] for o in PROMISES) and limit is not None and ratio > limit]


def main() -> None:
    args = options(__doc__, rounds=None, minutes=dict(type=float, default=10., help='after which the last process is ended'),
                   dry=dict(action='store_true', help='on a CPU, small'))
    if args.dry: runner.RECORDS = Path(tempfile.mkdtemp(prefix='dry'))
    if args.dry: runner.RESULTS = runner.RECORDS/'RESULTS-GPU.md'
    shutil.rmtree(runner.RECORDS, ignore_errors=True)
    start, failed = time.monotonic(), []
    left = lambda: 60 * args.minutes - (time.monotonic() - start)
    if not runner.ended_well(tests(args.dry), left() * SHARE_OF_TESTS): failed.append('tests')
    for name, options_of in ([name, o.split()] for name, o in SMALL.items()) if args.dry else ((b[0], b[1:]) for b in BENCHMARKS):
        if left() < 10 or not runner.run(name, options_of, left()): failed.append(' '.join([name, *options_of]))
        runner.write_results()
    print(f'{runner.RESULTS} is written')
    found = [] if args.dry else missed(runner.RECORDS)
    if failed: print('failed, or not ended in time: ' + '; '.join(failed), file=sys.stderr)
    if found: print('missed: ' + '; '.join(found), file=sys.stderr)
    sys.exit(bool(failed or found))


if __name__ == '__main__': main()
