"""DuckDB over the store: the only package that opens DuckDB.

In: a store, SQL from `sql/`. Out: rows, reports and plots. `database.connect` gives a connection with the views;
`queries.run_named` runs a named query and `gaps` computes the gap for frames; `scorers.resolve_scorers` finds the
losses of one gap. Of strangers' statements `guard` refuses, `sandbox_process` locks DuckDB to the listed files,
`confine` is the kernel's lock, and `sandbox_client` asks. `report` and `plots` draw what the losses say.
"""
