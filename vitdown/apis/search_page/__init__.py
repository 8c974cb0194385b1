"""A web page that searches a gallery by image; see ``tools/serve.py``."""

from .app import PageSettings, create_app

__all__ = ['PageSettings', 'create_app']
