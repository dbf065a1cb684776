"""Chat files in, a corpus out: distinct conversations in canonical form, and every rejected record with its reason.

`ingest.ingest` reads files into a corpus and returns a report; `formats` are the readers; `manifest` names corpora,
their revisions and their scorers; `task_set.read_task_set` reads a user's own rows in their order; `text` has the text
of a conversation, `refusals` the refusal rule; `export` and `archive` move a scored corpus to another store.
"""
