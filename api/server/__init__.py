"""The HTTP server around the app: `run` serves until it is stopped, `connections` bounds what clients may hold open."""
