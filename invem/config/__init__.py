"""Recipes and components: what a person wrote, checked and located."""
