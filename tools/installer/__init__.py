"""The steps behind ``tools/install.py``: standard library only, nothing of vitdown is imported."""
