"""All that a machine with a GPU has to show, in one call of ten minutes: tests first, then the benchmarks.

    python -m benchmarks.gpu [--minutes 10] [--dry]

Each is run in a process of its own and given what is left of the time, the most important first. `RESULTS-GPU.md` is written anew
after each, so that a call that is cut off leaves what it has found. `--dry` goes through it all on a CPU, at the smallest sizes.
"""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from benchmarks import __main__ as runner
from benchmarks.options import options

TESTS = [sys.executable, '-m', 'pytest', '-q', '-m', 'gpu', 'tests/test_gpu.py', 'tests/callback/test_graphed_step.py',
         'tests/callback/test_synchronisation.py']
BENCHMARKS = [['steps', '--sizes', '84'], ['explain'], ['lft'], ['steps', '--sizes', '224', '--methods', 'RelationNet'],
              ['evaluate'], ['adapt']]
DRY = [['kernels', '--size', '32', '--methods', 'RelationNet'], ['kernels', '--size', '32', '--methods', 'GNNNet']]


def ended_well(command: list[str], seconds: float) -> bool:
    "Did it end without an error, within this time? Else it is ended with all that it has started"
    process = subprocess.Popen(command, start_new_session=True)
    try: return not process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False


def main() -> None:
    args = options(__doc__, rounds=None, minutes=dict(type=float, default=10., help='after which the last process is ended'),
                   dry=dict(action='store_true', help='on a CPU, small'))
    ends, failed = time.monotonic() + 60 * args.minutes, []
    tests = [*TESTS[:3], '--collect-only', *TESTS[3:]] if args.dry else [*TESTS[:3], '-n', '8', *TESTS[3:]]
    for name, *own in [tests, *(DRY if args.dry else BENCHMARKS)]:
        left = ends - time.monotonic()
        if left < 10:
            failed.append(f'{" ".join([name, *own])} (no time)')
            continue
        command = [name, *own] if name == sys.executable else [sys.executable, '-m', 'benchmarks', name, '--', *own]
        if not ended_well(command, left): failed.append(' '.join([name, *own]))
    print(f'{runner.RESULTS.name} is written')
    if failed: sys.exit('failed, or not ended in time: ' + '; '.join(failed))


if __name__ == '__main__': main()
