# Written by tools/stubs.py from sampler_init.pyx.
"""What makes samplers: every ``llama_sampler_init_*`` of llama.h under its own name, as `Sampler` has them."""

__all__ = []
