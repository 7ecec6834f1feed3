"""Checkpoints in global class coordinates: written by any number of ranks, read by any other."""
