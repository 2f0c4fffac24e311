"Several processes on one machine, as `torchrun` would start them"
import os
import socket

import torch
import torch.multiprocessing as mp


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
