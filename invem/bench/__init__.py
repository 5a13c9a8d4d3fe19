"""Posterior samplers compared on one problem."""
