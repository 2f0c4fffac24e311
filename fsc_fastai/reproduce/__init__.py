"The paper's tables as resumable runs"
from .. import quietly  # noqa: F401  before fastai
