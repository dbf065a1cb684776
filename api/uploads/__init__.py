"""What a client sends: multipart and JSON bodies in, checked rows out.

`receive.received` reads one upload under the service's bounds; `multipart` and `bodies` are the two encodings, `rows`
checks the rows and lists the bad ones.
"""
