"""Trait-space monitor (arXiv 2606.07631): drift along seven trait directions while training, and its alarm."""
