"fastai, imported without a warning of torch's about fastai's use of it: nobody who reads it can do anything about it"
import warnings

with warnings.catch_warnings():
    warnings.filterwarnings('ignore', message='`torch.jit.script` is deprecated', category=FutureWarning)
    import fastai.torch_basics  # noqa: F401
