"""Signals and the end of processes, before anything large is imported."""
