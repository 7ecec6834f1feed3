"""Picture files: which formats are read, how their pixels become 8 bits, and which way is up."""
