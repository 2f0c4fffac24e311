"`fsc_eval`: the accuracy of a learner on domains that it has never seen"
# Annotations are read by `call_parse` at run time, so this module has no `from __future__ import annotations`.
from pathlib import Path

from fastcore.script import call_parse

from ..data.glyphs import untar_glyph_domains
from ..data.names import named_paths
from ..files import atomic_write
from ..learner.progress import plain_output
from ..learner.results import format_table
from .common import learner_from, plain_errors, printable_lines

__all__ = ['fsc_eval', 'named_domains']


def named_domains(
    paths, # Folders, or the word `glyphs`
) -> dict:
    "Names of domains to their folders. `glyphs` gives all embedded unseen domains. Raises `ValueError` for a name given twice"
    glyphs = untar_glyph_domains() if 'glyphs' in paths else {}
    folders = named_paths([path for path in paths if path != 'glyphs'])
    if both := sorted(glyphs.keys() & folders.keys()):
        raise ValueError(f'{both[0]} is a glyph domain and the folder {folders[both[0]]}: rename the folder')
    return glyphs | folders


@call_parse
def fsc_eval(
    learner: str, # File that `fsc_train` or `learn.export` wrote (a pickle: it executes what it holds); or the folder of a bundle
    *domains: str, # Folders with a folder of images per class; `glyphs` for the embedded unseen domains
    n_episodes: int = 2000, # Test episodes per domain
    n_way: int = 5, # Classes per episode
    n_shot: int = 5, # Support images per class
    n_query: int = 16, # Queries per class
    drop_small: bool = False, # Leave out the classes with too few images, instead of an error
    seed: int = 0, # The same seed draws the same episodes for every learner
    transductive: bool = False, # Let confident queries join the support set
    adapt: str | None = None, # Adaptation to each support: pa, or pa:lr=0.1,steps=20; join several to compare them: none+pa+pmf
    resume: Path | None = None, # File to keep accuracies in, so that an interrupted run goes on; for adaptations of the encoder
    csv: Path | None = None, # CSV file to write the table to as well
    device: str | None = None, # Where to compute: cpu, cuda, cuda:1, mps; default: a GPU if there is one
) -> None:
    """Test a learner on domains that it has never seen: accuracy with its 95 % interval over the episodes.

    Prints one row per domain. A pickle executes what its writer put into it: only load those that you trust. A bundle, the folder
    of a saved classifier, executes nothing.
    """
    def test():
        learn = learner_from(learner, device)
        with plain_output(learn):
            drawn = dict(n_way=n_way, n_shot=n_shot, n_query=n_query)
            # not as in training, for which a domain may have too few images
            tested = learn.dls.as_domains(named_domains(domains or ['glyphs']), **drawn, drop_small=drop_small)
            rows = [None if name == 'none' else name for name in adapt.split('+')] if adapt else []
            table = learn.evaluate(tested, n_episodes=n_episodes, seed=seed, transductive=transductive, resume=resume,
                                   adapt=rows if len(rows) > 1 else next(iter(rows), None), **drawn)
        print(printable_lines(format_table(table)))
        if csv:
            with atomic_write(csv) as part: table.to_csv(part, index=False)
    plain_errors(test)
