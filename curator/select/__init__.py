"""A scored corpus in, chosen rows out: filters in order, one reason for each dropped row, then a strategy.

`pool` makes and reads the pool frame; `filters` and `strategies` are Polars expressions, one for each name in a recipe;
`select.select` applies them. Filters over texts (`duplicates`, `minhash`, `ngrams`, `tfidf`, `eval_sets`) answer with a
column. Order and ties are by (score, id), so the answer does not depend on row order or threads.
"""
