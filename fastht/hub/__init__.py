"""Adapters on the Hugging Face Hub: an extra, ``pip install 'fastht[hub]'``."""
