"""DuckDB over the store: the only package that opens DuckDB.

In: a store, SQL from `sql/`. Out: rows, reports and plots. `database.connect` gives a connection with the views;
`queries.run_named` runs a named query and `gaps` computes the gap for frames; `scorers.resolve_scorers` finds the
losses of one gap. For SQL that users send over HTTP, `guard` checks the statement, `sandbox_process` restricts DuckDB
to the listed files, `confine` restricts its process by the kernel, and `sandbox_client` sends statements to it.
`report` and `plots` show the losses.
"""
