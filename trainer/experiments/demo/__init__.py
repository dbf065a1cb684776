"""Data sets that the demo trains and scores on."""
