"""The kernels themselves, in Triton. Nothing outside imports these files until a device asks for them."""
