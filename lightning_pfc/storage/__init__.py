"""Where rows are kept beyond memory; used by heads and optimizers alike, and using neither."""
