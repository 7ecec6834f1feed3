"""Looking after data sets: converting, checking, aligning, cleaning. What ``pfc-data`` does, as functions."""
