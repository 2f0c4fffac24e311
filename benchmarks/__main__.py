"Runs every benchmark: `python -m benchmarks`"
import subprocess
import sys
from pathlib import Path

NOT_BENCHMARKS = {'__init__', '__main__', 'timing'}

if __name__ == '__main__':
    names = sorted(p.stem for p in Path(__file__).parent.glob('*.py') if p.stem not in NOT_BENCHMARKS)
    # a process each, so that none inherits the threads or the memory of another
    failed = [name for name in names if subprocess.run([sys.executable, '-m', f'benchmarks.{name}']).returncode]
    if failed: sys.exit(f'failed: {", ".join(failed)}')
