"""How an output is judged against the published answer: one protocol a file."""
