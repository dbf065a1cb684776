"""Chosen rows and a task set in, a mix out: amounts, order, inoculation prompts, rows, manifest, verification."""
