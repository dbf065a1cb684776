"""Model organisms: adapters made misaligned on purpose from narrow sets, and their benign twins (method.md 1, 2)."""
