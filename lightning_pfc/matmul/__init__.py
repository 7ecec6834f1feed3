"""Float32 matrix products: by the fastest library of a CPU, and in full precision where the user allows TF32."""
