"""Scores instruct corpora by perplexity gap, selects safe rows and mixes them into fine-tuning data."""
