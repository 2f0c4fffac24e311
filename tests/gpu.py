"""Where the tests marked `gpu` compute: on a CUDA device.

`FSC_TEST_DEVICE=cpu pytest -m gpu` runs the same bodies on a CPU, against the CPU: to try the tests where there is no such
device.
"""
import os
from contextlib import contextmanager

import torch

GPU = os.environ.get('FSC_TEST_DEVICE', 'cuda')
ON_CUDA = torch.device(GPU).type == 'cuda'


def wait_errors(mode):
    "Whether waiting for the device is an error from here on ('error' or 'default'); a CPU has nothing to wait for"
    if ON_CUDA: torch.cuda.set_sync_debug_mode(mode)


@contextmanager
def no_waiting():
    "An error where the host waits for the device"
    wait_errors('error')
    try: yield
    finally: wait_errors('default')
