"The script for a machine with a GPU: what it promises is checked, what takes too long is ended, and a CPU can try it"
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as runner
from benchmarks import gpu

ROOT = Path(__file__).parents[1]


def test_limits_that_are_missed_are_named(tmp_path):
    rows = [['plain', .1, 1., None], ['guided', .2, 2., 1.5], ['LFT', .1, 1., 1.]]
    titles = ['RelationNet at 84 px: a guided step by a plain one', 'GNNNet: relevance pass by a step of its head', 'Other']
    entries = [dict(note='A finding.'), *(dict(title=title, rows=rows) for title in titles)]
    (tmp_path/'steps.jsonl').write_text('\n'.join(map(json.dumps, entries)))
    assert gpu.missed(tmp_path) == [f'{title}: guided 2, limit 1.5' for title in titles[:2]]


def test_what_fails_or_takes_too_long_is_told_and_ended():
    def run(code, seconds=None, **env): return runner.ended_well([sys.executable, '-c', code], seconds, **env)
    assert run('import os; assert os.environ["A"] == "b"', A='b') and not run('1/0')
    assert not run('import time; time.sleep(600)', .1)


def test_its_benchmarks_and_tests_are_there():
    source = ''.join((ROOT/'benchmarks'/f'{name}.py').read_text() for name in ('steps', 'explain'))
    for title in gpu.PROMISES: assert title in source
    assert gpu.SMALL.keys() == {name for name, *_ in gpu.BENCHMARKS}, 'a dry run of each'
    for name in gpu.SMALL: assert (ROOT/'benchmarks'/f'{name}.py').is_file()
    for file in gpu.TESTS: assert re.search(r'mark\.gpu|\bdevice\b', (ROOT/file).read_text())


def test_a_benchmark_by_name_leaves_what_others_found(tmp_path, monkeypatch):
    results, record = tmp_path/'RESULTS.md', tmp_path/'b.jsonl'
    for name, value in (('RESULTS', results), ('RECORDS', tmp_path), ('machine', lambda: 'A machine.')):
        monkeypatch.setattr(runner, name, value)
    results.write_text('# Measured\n\nBy old versions.\n\n## a\n\nFound once.\n\n## b\n\nOld.\n')
    record.write_text(json.dumps(dict(note='New.')))
    runner.write_results(keep=True)
    once = results.read_text()
    assert once.endswith('## a\n\nFound once.\n\n## b\n\nNew.\n') and 'old versions' not in once
    record.unlink()
    runner.write_results(keep=True)
    assert results.read_text() == once
    runner.write_results()
    assert '##' not in results.read_text()


@pytest.mark.slow
def test_dry_run():
    before = (ROOT/'benchmarks'/'RESULTS.md').read_text()
    made = subprocess.run([sys.executable, '-m', 'benchmarks', 'gpu', '--', '--dry', '--minutes', '30'], cwd=ROOT, text=True,
                          capture_output=True)
    assert made.returncode == 0, made.stderr[-2000:]
    results = Path(re.search(r'^(.*RESULTS-GPU\.md) is written', made.stdout, re.M)[1]).read_text()
    for name in gpu.SMALL: assert f'## {name} ' in results
    for wanted in ("A run of the paper's size", 'a guided step by a plain one', 'the sum of its kernels', '400 pairs', 'LFT'):
        assert wanted in results, wanted
    assert (ROOT/'benchmarks'/'RESULTS.md').read_text() == before
