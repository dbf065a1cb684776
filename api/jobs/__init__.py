"""Jobs: work that outlives a request.

Job files are the source of truth: which jobs there are, and whose turn it is, is read from them alone. The queue (a
storage of huey) only wakes workers: its messages make an idle worker look at the files within a tenth of a second
instead of five, and losing all of them loses no job. `record` says what a job is, `board` keeps the files of each
tenant's jobs, `queue` holds the messages, `worker` does the work, `metrics` counts it, `models` has those that may be
trained. The service imports neither `worker` nor its `handlers`, which may load a model.
"""
