"""Dictionaries, one a file."""
