"""Research on the product, apart from it: the demo, the comparison of defences, the tiny organism, calibration."""
