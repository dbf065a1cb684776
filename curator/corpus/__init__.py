"""Chat files in, a corpus out: distinct conversations in canonical form, every rejected record listed with a reason."""
