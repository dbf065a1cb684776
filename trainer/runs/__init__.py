"""The folder of a run, and what is kept in it.

`folder.RunFolder` claims a folder for a run (or finds it complete), `checkpoints` resume it, `weights` reads and checks
model and adapter files, `report` writes report.json, report.md and the model card, `machine` says where it ran,
`device` how much memory it took and has.
"""
