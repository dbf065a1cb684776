"""A scored corpus in, chosen rows out: filters in order, one reason for each dropped row, then a strategy."""
