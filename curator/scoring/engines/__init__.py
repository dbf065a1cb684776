"""Engines that compute response losses; the only modules of curator that import torch or vLLM.

In: token ids with response masks. Out: `base.RowLoss`, a sum in nats and a token count. `base.Engine` is the interface;
`torch_engine`, `vllm_engine` and `server_engine` implement it. A `base.Launch` says what an engine is before it is
loaded, and loads it; `launch` has the one of torch, which imports torch only then.
"""
