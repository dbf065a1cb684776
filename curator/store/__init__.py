"""Bytes by path, in a local folder or a bucket.

In: paths and bytes, Arrow tables. Out: files that are complete or absent. `store.Store` opens a store and reads and
writes files and tables; `filesystem` has atomic writes, `lock` leases between processes, `scratch` temporary folders
that the next process sweeps, `schema` the columns of every table, declared once.
"""
