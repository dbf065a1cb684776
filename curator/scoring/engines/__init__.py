"""Engines that compute response losses: torch, vLLM, a vLLM server. Only these modules import torch or vLLM."""
