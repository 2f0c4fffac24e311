"The command line, one command per file"
from .. import quietly  # noqa: F401  before fastai
