"""Maxwell: which of my language models should do this, right now?"""

__version__ = "0.1.0"
