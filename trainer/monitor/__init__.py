"""Trait-space monitor (arXiv 2606.07631): drift along trait directions while training, and an alarm.

`directions` are found once for a base model, `callback.Watch` measures during a run, `alarm` holds the rules and
`measure` fits them on finished adapters.
"""
