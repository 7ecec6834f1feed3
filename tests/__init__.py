"""The project's tests; a package, so that the processes of the rank pool can import what a test module defines."""
