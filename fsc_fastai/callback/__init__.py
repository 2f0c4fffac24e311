"fastai callbacks: one idea per file"
from .. import quietly  # noqa: F401  before fastai
