"""Recipes: stages in order, where their weights come from, and the folder of a run."""
