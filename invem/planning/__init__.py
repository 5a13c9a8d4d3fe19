"""Plans: a recipe against the components that it names, before anything is computed."""
