"""Runs all attacks, as `make attack` does, and prints a table for each module; exit status 1 if one failed. Takes hours.

    python -m tests.attacks [--bundles 5000] [--requests 2000] [--kills 50] [--seed 0]

A number of 0 leaves a module out.
"""
import argparse
import importlib

from tests.attacks.table import Outcome, table

SIZES = dict(bundles=5000, requests=2000, kills=50)


def outcomes_of(module, n, seed):
    "All outcomes; without memory and time if the module only counts"
    if hasattr(module, 'outcomes'): return list(module.outcomes(n, seed))
    found = module.attack(n, seed)
    return [Outcome(kind, what) for kind, tried, refused, failed, *_ in found
            for what in ['refused'] * refused + ['failed'] * failed + ['answered'] * (tried - refused - failed)]


def main():
    parser = argparse.ArgumentParser(prog='python -m tests.attacks')
    for name, n in SIZES.items(): parser.add_argument(f'--{name}', type=int, default=n)
    parser.add_argument('--seed', type=int, default=0)
    args = vars(parser.parse_args())
    failed = []
    for name in SIZES:
        if not args[name]: continue
        found = outcomes_of(importlib.import_module(f'tests.attacks.{name}'), args[name], args['seed'])
        print(table(name, found), end='\n\n', flush=True)
        failed += [o for o in found if o.what == 'failed']
    for o in failed: print(f'failed: {o.kind}: {o.message}')
    raise SystemExit(bool(failed))


if __name__ == '__main__': main()
