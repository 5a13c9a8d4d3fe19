"""Runs: the steps of expectation-maximisation over a run directory."""
