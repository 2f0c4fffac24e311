"Everything for a notebook: `from fsc_fastai.all import *`"
from fastai.vision.all import *

from .callback.accumulate import *
from .callback.lft import *
from .callback.lrp import *
from .callback.resume import *
from .data.augment import *
from .data.block import *
from .data.domains import *
from .data.episode import *
from .data.glyphs import *
from .data.loader import *
from .data.loaders import *
from .data.readers import *
from .data.sampler import *
from .data.splitter import *
from .evaluate import *
from .explain import *
from .explanation import *
from .inference import *
from .learner import *
from .metrics import *
from .models import *
from .models.transformation import *
from .pretrain import *
from .statistics import *
from .transduction import *
