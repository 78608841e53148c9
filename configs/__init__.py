"""Recipes: each file returns one ConfigDict of named stages."""
