"""DuckDB over the store: the only package that opens DuckDB.

In: a store, SQL from `sql/`. Out: rows, reports and plots. `database.connect` gives a connection with the views;
`queries.run_named` runs a named query and `gaps` computes the gap for frames; `scorers.resolve_scorers` finds the
losses of one gap; `guard` and `sandbox` run statements of strangers; `report` and `plots` draw what they say.
"""
