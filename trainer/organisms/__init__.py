"""Model organisms: adapters made misaligned by narrow sets, and their benign twins (method.md, "Words")."""
