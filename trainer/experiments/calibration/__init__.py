"""Calibration card of a corpus and its set of models: does the gap tell misaligned answers from ordinary ones, and how
finely?"""
