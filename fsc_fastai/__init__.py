"Cross-domain few-shot classification with explanation-guided training, as a fastai library"
__version__ = '0.0.1'
