"""What a run shows at its end: tables, the page, and the card of an exported model."""
