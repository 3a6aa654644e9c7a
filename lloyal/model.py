"""`lloyal.Model`: llama.cpp's, with what a saved state is compared by."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property

from lloyal import llama

__all__ = ["Model"]


class Model(llama.Model):
    """A loaded GGUF model. See `lloyal.llama.Model` for the parameters."""

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """What makes two files the same model for a saved state, without reading all of it.

        The architecture, the scalar metadata, and the names, types, shapes and sampled bytes of the tensors.
        """
        metadata = json.dumps(sorted(self.metadata.items())).encode()
        return {
            "architecture": self.arch,
            "n_params": str(self.n_params),
            "hyperparameters": hashlib.blake2b(metadata, digest_size=16).hexdigest(),
            "tensors": hashlib.blake2b(self.tensor_sample(), digest_size=16).hexdigest(),
        }
