"Other processes: one that may fail or be killed, and several on one machine, as `torchrun` would start them"
import multiprocessing
import os
import resource
import signal
import socket
from pathlib import Path

import torch
import torch.multiprocessing as mp

FORK = multiprocessing.get_context('fork')
"Its children have the imports of this process"


def in_child(run, *args) -> int:
    "Run it in another process; its exit code"
    child = FORK.Process(target=run, args=args)
    child.start()
    child.join()
    return child.exitcode


def files(folder: Path) -> dict[str, bytes]:
    "All that a run left in a folder"
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def on_a_small_disk(limit: int) -> None:
    "From here on this process may write no more than so many bytes to a file"
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def _start(rank, run, world_size, port, folder, args):
    torch.set_num_threads(1)
    os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size),
                       MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.save(run(*args), folder/f'rank{rank}.pt')
    torch.distributed.destroy_process_group()


def in_ranks(run, folder, *args, world_size=2):
    "What `run(*args)` returns in each of several forked processes; it may use `learn.distrib_ctx(cpu=True)`"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    mp.start_processes(_start, (run, world_size, port, folder, args), nprocs=world_size, start_method='fork')
    return [torch.load(folder/f'rank{rank}.pt', weights_only=False) for rank in range(world_size)]
