"""Fakes that ship beside the real thing: a vLLM server with a fault plan, and an engine that answers at once."""
