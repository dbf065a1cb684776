"""Bytes by path, in a folder or a bucket: atomic writes, locks, scratch folders, and the columns of every table."""
