"""Matrix products: in a chosen precision (``in_precision``), in true float32, by the fastest library of a CPU."""
