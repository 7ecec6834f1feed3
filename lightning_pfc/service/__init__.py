"""A recogniser and its gallery over HTTP."""
