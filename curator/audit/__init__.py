"""A user's rows, alone (`doctor`) and beside a scored corpus: do misaligned models find them likelier than aligned ones
do (docs/method.md, "Audits")?

In: rows, the models that scored the corpus. Out: a percentile for each row and a verdict with an interval for the set.
`run.audit` does it; `risk` holds the pure statistics, `options` what a caller may set, `models` the loaded engines.
"""
