"""Random numbers as functions of keys: the same on every rank and device, whatever was drawn before."""
