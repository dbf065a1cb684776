"""Client of the HTTP service: `with Client(url) as client: client.create_mix("task.jsonl", {"corpus": "chats"})`.

Every call raises RemoteError when the service answers with an error or not at all. Calls that may be repeated without
harm (a mix's id follows from the request, a job's from its Idempotency-Key) are tried again on a lost connection, 429,
502, 503 and 504. A download is verified against the manifest before it gets its name. `endpoints` has a method for each
endpoint, `transport` sends them.
"""

from curator.client.endpoints import Client, Data, DataSet
from curator.client.transport import ServiceError

__all__ = ["Client", "Data", "DataSet", "ServiceError"]
