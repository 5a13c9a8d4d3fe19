"""A new plugin distribution, written from templates."""
