"""Model organisms: adapters made misaligned by narrow sets, and their benign twins (docs/method.md, "Words").

`plan.Plan` says which sets, `make` trains and measures them; `sets_shipped` has the narrow sets of the project.
"""
