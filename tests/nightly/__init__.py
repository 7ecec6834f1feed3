"""What takes hours: ``pytest --tier nightly``."""
