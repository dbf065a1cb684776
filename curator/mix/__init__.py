"""Chosen rows and a task set in, a training mix with its manifest out.

`build.build_mix` does all of it, or finds the mix made already; `build.preview_mix` gives the manifest and keeps no
mix. `resolve` finds what a recipe names, `allocation` and `order` decide how many safe rows and where, `inoculation`
adds prompts, `writer` writes the rows, `describe` fills in the manifest (`manifest` has its types, `identity` the mix
id). `verify` (with `row_check`), `diff`, `sign`, `reasons` and `snippets` work on finished mixes; `private` makes a mix
of rows that never reach the service.
"""
