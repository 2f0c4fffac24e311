"""Runs all attacks, as `make attack` does, and prints a table for each module; exit status 1 if one failed. Takes hours.

    python -m tests.attacks [--bundles 5000] [--requests 2000] [--kills 50] [--seed 0]

A number of 0 leaves a module out.
"""
import argparse
import importlib

from tests.attacks.table import table

SIZES = dict(bundles=5000, requests=2000, kills=50)


def main():
    parser = argparse.ArgumentParser(prog='python -m tests.attacks')
    for name, n in SIZES.items(): parser.add_argument(f'--{name}', type=int, default=n)
    parser.add_argument('--seed', type=int, default=0)
    args = vars(parser.parse_args())
    failed = []
    for name in SIZES:
        if not args[name]: continue
        found = list(importlib.import_module(f'tests.attacks.{name}').outcomes(args[name], args['seed']))
        print(table(name, found), end='\n\n', flush=True)
        failed += [o for o in found if o.what == 'failed']
    for o in failed: print(f'failed: {o.kind}: {o.message}')
    raise SystemExit(bool(failed))


if __name__ == '__main__': main()
