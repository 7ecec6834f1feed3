"""Importing names: lazily, when another library has been imported, and under earlier words."""
