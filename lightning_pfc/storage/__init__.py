"""How files are kept: rows beyond memory, and files that appear whole or not at all."""
