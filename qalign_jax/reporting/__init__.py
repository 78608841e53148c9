"""What a run shows at its end: the table and the page."""
