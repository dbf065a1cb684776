"""What a client sends: multipart and JSON bodies in, checked rows out."""
