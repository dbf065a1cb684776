"""What a run trains on: a mix or a file in, token ids and labels out, in the order that the manifest states."""
