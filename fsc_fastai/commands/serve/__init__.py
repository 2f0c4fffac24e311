"`fsc_serve`: a web page where a few images per class make a classifier. Works without network access"
from ...extras import extra

with extra('serve'):
    from .app import create_app
    from .command import fsc_serve
    from .limits import Limits

__all__ = ['Limits', 'create_app', 'fsc_serve']
