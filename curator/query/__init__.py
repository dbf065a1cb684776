"""DuckDB over the store: the gap and the named queries of `sql/`, the guarded SQL of strangers, reports and plots."""
