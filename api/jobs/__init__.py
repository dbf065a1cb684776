"""Jobs: work that outlives a request.

Job files are the source of truth; the queue (a storage of huey) only wakes workers, so that a job starts within half
a second instead of five, when an idle worker next lists the files. Losing the queue loses no job. `record` says what
a job is, `board` keeps the files of each tenant's jobs, `queue` holds the messages, `worker` does the work. The
service imports the first three alone; the worker's `handlers` may load a model.
"""
