"""Config: the typed model, read with every mistake told at once."""
