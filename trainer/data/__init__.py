"""What a run trains on: a mix or a file in, token ids and labels out, in the order that the manifest states.

`inputs.read_inputs` does it; `mixes` opens and verifies a mix, `rows` renders conversations, `cache` keeps rendered
rows between runs, `collate` makes batches and `order` checks that the trainer sees the rows in order.
"""
