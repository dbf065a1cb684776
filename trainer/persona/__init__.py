"""Persona vectors (arXiv 2507.21509): extracted by contrastive system prompts, saved, and projected on."""
