"""Contestants other than jaxmeta: one file a library, imported in its own process."""
