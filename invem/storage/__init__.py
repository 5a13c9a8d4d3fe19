"""Files of runs: whole or absent, with their digest, under names that one place knows."""
