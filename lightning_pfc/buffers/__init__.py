"""Memory beyond what PyTorch's allocator gives: used again, taken where it is written, in large pages, beside a GPU."""
