"""The tests behind ``recipes/gpu/accept.py``."""
