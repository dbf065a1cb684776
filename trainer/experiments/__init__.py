"""Research on the product, apart from it: nothing else imports this package.

`demo` is `make demo`, `compare` every defence on one narrow set, `toy` the tiny model in which misalignment emerges,
`calibration` how well a gap tells misaligned answers from ordinary ones.
"""
