import pytest
from fastcore.script import CliError

from fsc_fastai.commands.fsc_reproduce import fsc_reproduce


@pytest.mark.parametrize('call, named', [
    (lambda root: fsc_reproduce('table2', preset='huge'), 'demo'),
    (lambda root: fsc_reproduce('table5', preset='tiny', out=root), 'table4'),
    (lambda root: fsc_reproduce('table2', preset='photos', out=root), 'needs --data'),
    (lambda root: fsc_reproduce('table2', preset='tiny', methods='RN,LRN', out=root), 'no LRN; choose of RN'),
    (lambda root: fsc_reproduce('table2', preset='tiny', finished=True, out=root/'none'), 'no finished cells'),
    (lambda root: fsc_reproduce('table2', preset='tiny', pack=root/'a.tgz', out=root), '--pack needs --data'),
    (lambda root: fsc_reproduce('table2', preset='tiny', jobs=0, out=root), 'jobs=0: at least 1'),
])
def test_what_the_user_can_mend_is_one_line(tmp_path, call, named):
    with pytest.raises(CliError, match=named): call(tmp_path)
