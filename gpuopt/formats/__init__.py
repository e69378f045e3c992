"""How elements lie in memory."""
