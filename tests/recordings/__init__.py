"""Numbers of the head from before a change, to be compared after it."""
