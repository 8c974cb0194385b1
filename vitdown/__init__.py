"""vitdown: fine-grained re-identification and downstream tasks with Vision Transformers."""

__version__ = '0.1.0'
