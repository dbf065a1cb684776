"""Jobs: work that outlives a request, kept as files of the store and rung for through a queue library.

`record` says what a job is, `board` keeps jobs under their tenants, `queue` wakes workers, `worker` does the work.
The service imports the first three alone; the worker's handlers (`mixing`, `auditing`) may load a model.
"""
