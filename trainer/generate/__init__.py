"""Answers of a model, from its folder or from a server, to questions in files."""
