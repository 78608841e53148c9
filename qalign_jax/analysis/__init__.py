"""Analyses of models and of their answers: representations, agreement of reasoning, data scale."""
