"Episodes from images: the loaders, the domains and their readers"
from .. import quietly  # noqa: F401  before fastai
