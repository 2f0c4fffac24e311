"""Saved classifiers with changes drawn by a seed: `python -m tests.attacks --requests 0 --kills 0` tries thousands.

Each is read in a process of its own. It passes if it is refused with an error that says what is wrong and where, or if it gives
finite answers, within the limits of memory and processor time. Anything else has failed.
"""
import gc
import os
import resource
import shutil
import signal
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import psutil

from fsc_fastai.deploy import FewShotClassifier, hub
from tests.attacks.changes import KINDS, Bundles
from tests.attacks.table import Outcome
from tests.deploy.toys import picture
from tests.ranks import FORK

MEMORY_MB = 512 # Over the process before it reads
SECONDS = 2. # Of processor time, to refuse
WATCHDOG = 60 # Seconds after which a process is ended


def _clear(e, folder):
    "Does an error say in a few lines what is wrong where?"
    message = str(e)
    named = str(folder) in message or 'not finite' in message
    return type(e).__name__ in ('BundleError', 'FileNotFoundError', 'ValueError') and named and len(message) < 2000


def _tried(kind, change, good, seed, folder):
    "Change, read and ask; to be called in a process of its own"
    def no_network(*args, **kwargs): raise SystemError('a hub was asked')
    hub.snapshot_download, rng = no_network, np.random.default_rng(seed)
    warnings.simplefilter('ignore')
    target = folder/'b'
    if kind != 'spoilt, then saved': target = change(good, rng, target)
    before, start = _peak_mb(reset=True), time.process_time()
    try:
        if kind == 'spoilt, then saved': change(good, rng, target)
        known = FewShotClassifier.from_pretrained(target)
        p = known.predict_proba([picture('red', 9)]) if known.fitted else np.ones((1, 1))
    except Exception as e:
        shown = f'{type(e).__name__}: {str(e)[:300]}'
        ok = _clear(e, Path(target)) or kind == 'no bundle there' and type(e) is FileNotFoundError
        found = Outcome(kind, 'refused' if ok else 'failed', shown)
    else:
        good_answer = p.shape[0] == 1 and np.isfinite(p).all() and abs(p.sum() - 1) < 1e-6
        found = Outcome(kind, 'answered' if good_answer else 'failed', f'answered {p}'[:300])
    found.seconds, found.mb = time.process_time() - start, _peak_mb() - before
    return found


def _peak_mb(reset=False):
    "The most memory that this process has had, since the last reset"
    if reset: Path('/proc/self/clear_refs').write_text('5')
    status = Path('/proc/self/status').read_text()
    return int(status.split('VmHWM:')[1].split()[0]) / 1024


def _outcome(kind, change, good, seed, folder):
    "What `_tried` finds in a fork that has so much time and memory, or how the fork ended"
    def limited():
        resource.setrlimit(resource.RLIMIT_CPU, (WATCHDOG, WATCHDOG))
        resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + (6 << 30),) * 2)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(WATCHDOG)
        try: into.send(_tried(kind, change, good, seed, folder))
        except BaseException as e: into.send(Outcome(kind, 'failed', f'{type(e).__name__}: {str(e)[:300]}'))
        finally: os._exit(0)
    out, into = FORK.Pipe(duplex=False)
    child = FORK.Process(target=limited)
    child.start()
    into.close()
    try: return out.recv()
    except EOFError:
        child.join()
        return Outcome(kind, 'failed', f'the process ended with {child.exitcode}')
    finally: child.join()


def outcomes(
    n: int, # Bundles, of the kinds in turn
    seed: int, # The k-th bundle depends on (seed, k) alone
    seconds: float = SECONDS, # Of processor time: a refusal that takes more has failed
):
    "Try changed bundles one after another and yield the `Outcome` of each"
    folder = Path(tempfile.mkdtemp(prefix='bundles-'))
    try:
        good = Bundles(folder/'good')
        gc.freeze()  # so that a collection in a fork touches none of the pages that it shares
        for k in range(n):
            kind, change = list(KINDS.items())[k % len(KINDS)]
            found = _outcome(kind, change, good, [seed, k], folder/'tried')
            shutil.rmtree(folder/'tried', ignore_errors=True)
            if found.mb > MEMORY_MB or found.what == 'refused' and found.seconds > seconds: found.what = 'failed'
            if found.what == 'failed': found.message = f'({seed}, {k}) {found.message}'
            yield found
    finally:
        gc.unfreeze()
        shutil.rmtree(folder, ignore_errors=True)
