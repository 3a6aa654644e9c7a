# cython: language_level=3
"""What a loaded model says about itself."""

from libc.stdint cimport int32_t, uint8_t
from libcpp.vector cimport vector

cimport lloyal._cpp.core as core
cimport lloyal._cpp.model as cmodel
cimport lloyal.libllama.llama as c
cimport lloyal.libllama.llama_ext as x
from lloyal.llama.backend cimport wrap_device
from lloyal.llama.status cimport check, check_process
from lloyal.llama.vocab cimport wrap_vocab

from lloyal.errors import Closed

__all__ = ["ModelInfo"]


cdef class ModelInfo:
    """The handle of a model and its properties. Not for direct use: see `Model`."""

    cdef core.ModelHandle pin(self) except *:
        if not self.handle:
            raise Closed(f"model {self.path} is closed")
        check_process()
        return self.handle

    def close(self) -> None:
        """Drop this object's hold on the weights; they are freed when nothing else uses them. Releases the GIL."""
        cdef core.ModelHandle handle
        handle.swap(self.handle)
        self._vocab = None
        with nogil:
            handle.reset()

    @property
    def closed(self) -> bool:
        return not self.handle

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    @property
    def vocab(self) -> Vocab:
        """The vocabulary; it keeps the model alive."""
        if self._vocab is None:
            self._vocab = wrap_vocab(self.pin())
        return self._vocab

    @property
    def desc(self) -> str:
        """Architecture, size and quantization in a few words."""
        cdef core.ModelHandle handle = self.pin()
        cdef char text[256]
        c.llama_model_desc(handle.get().ptr, text, sizeof(text))
        return text.decode("utf-8", "replace")

    @property
    def arch(self) -> str:
        """``general.architecture`` of the file, such as ``"llama"`` or ``"lfm2"``."""
        return self.metadata.get("general.architecture", "unknown")

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        cdef core.ModelHandle handle = self.pin()
        return c.llama_model_size(handle.get().ptr)

    @property
    def n_params(self) -> int:
        """Number of weights."""
        cdef core.ModelHandle handle = self.pin()
        return c.llama_model_n_params(handle.get().ptr)

    @property
    def ftype(self) -> str:
        """File type, such as ``"F16"`` or ``"Q4_K - Medium"``."""
        cdef core.ModelHandle handle = self.pin()
        return c.llama_ftype_name(c.llama_model_ftype(handle.get().ptr)).decode()

    @property
    def metadata(self) -> dict[str, str]:
        """The file's scalar metadata as strings; arrays are left out, as in llama.cpp's own accessor."""
        cdef core.ModelHandle handle = self.pin()
        cdef const c.llama_model* model = handle.get().ptr
        cdef int32_t i
        if self._metadata is None:
            found = {}
            for i in range(c.llama_model_meta_count(model)):
                found[_meta_text(model, i, True)] = _meta_text(model, i, False)
            self._metadata = found
        return dict(self._metadata)

    def chat_template(self, name: str | None = None) -> str | None:
        """The chat template of the file (the default one, or one by name), or None."""
        cdef core.ModelHandle handle = self.pin()
        cdef bytes encoded = (name or "").encode()
        cdef const char* wanted = NULL
        cdef const char* found
        if name is not None:
            wanted = encoded
        found = c.llama_model_chat_template(handle.get().ptr, wanted)
        return found.decode("utf-8", "replace") if found != NULL else None

    @property
    def n_ctx_train(self) -> int:
        """Context length it was trained with."""
        cdef core.ModelHandle handle = self.pin()
        return c.llama_model_n_ctx_train(handle.get().ptr)

    @property
    def n_embd(self) -> int:
        cdef core.ModelHandle handle = self.pin()
        return c.llama_model_n_embd(handle.get().ptr)

    @property
    def n_embd_inp(self) -> int:
        """Values in an input embedding row."""
        cdef core.ModelHandle handle = self.pin()
        return c.llama_model_n_embd_inp(handle.get().ptr)

    @property
    def n_embd_out(self) -> int:
        """Values in an output embedding row."""
        cdef core.ModelHandle handle = self.pin()
        return c.llama_model_n_embd_out(handle.get().ptr)

    @property
    def n_layer(self) -> int:
        cdef core.ModelHandle handle = self.pin()
        return c.llama_model_n_layer(handle.get().ptr)

    @property
    def n_layer_nextn(self) -> int:
        """Multi-token-prediction layers appended to the model."""
        cdef core.ModelHandle handle = self.pin()
        return c.llama_model_n_layer_nextn(handle.get().ptr)

    @property
    def n_head(self) -> int:
        """Attention heads of the first layer; 0 without layers (vocab_only)."""
        cdef core.ModelHandle handle = self.pin()
        if c.llama_model_n_layer(handle.get().ptr) == 0:
            return 0  # llama.cpp aborts
        return c.llama_model_n_head(handle.get().ptr)

    @property
    def n_head_kv(self) -> int:
        """Key and value heads of the first layer; 0 without layers (vocab_only)."""
        cdef core.ModelHandle handle = self.pin()
        if c.llama_model_n_layer(handle.get().ptr) == 0:
            return 0
        return c.llama_model_n_head_kv(handle.get().ptr)

    @property
    def n_swa(self) -> int:
        """Sliding-window size of the file, 0 without one. `ctx.memory.kind` says what the cache really does."""
        cdef core.ModelHandle handle = self.pin()
        return c.llama_model_n_swa(handle.get().ptr)

    @property
    def rope_type(self) -> str:
        """``"none"``, ``"norm"``, ``"neox"``, ``"mrope"``, ``"imrope"`` or ``"vision"``."""
        cdef core.ModelHandle handle = self.pin()
        return {
            c.LLAMA_ROPE_TYPE_NONE: "none", c.LLAMA_ROPE_TYPE_NORM: "norm", c.LLAMA_ROPE_TYPE_NEOX: "neox",
            c.LLAMA_ROPE_TYPE_MROPE: "mrope", c.LLAMA_ROPE_TYPE_IMROPE: "imrope", c.LLAMA_ROPE_TYPE_VISION: "vision",
        }[c.llama_model_rope_type(handle.get().ptr)]

    @property
    def rope_freq_scale_train(self) -> float:
        cdef core.ModelHandle handle = self.pin()
        return c.llama_model_rope_freq_scale_train(handle.get().ptr)

    @property
    def classifier_labels(self) -> list[str | None]:
        """Labels of a classifier's outputs; empty for other models."""
        cdef core.ModelHandle handle = self.pin()
        cdef const char* label
        labels = []
        for i in range(c.llama_model_n_cls_out(handle.get().ptr)):
            label = c.llama_model_cls_label(handle.get().ptr, i)
            labels.append(label.decode("utf-8", "replace") if label != NULL else None)
        return labels

    @property
    def has_encoder(self) -> bool:
        cdef core.ModelHandle handle = self.pin()
        return c.llama_model_has_encoder(handle.get().ptr)

    @property
    def has_decoder(self) -> bool:
        cdef core.ModelHandle handle = self.pin()
        return c.llama_model_has_decoder(handle.get().ptr)

    @property
    def decoder_start_token(self) -> int | None:
        """The token an encoder-decoder model's decoder starts from."""
        cdef core.ModelHandle handle = self.pin()
        token = c.llama_model_decoder_start_token(handle.get().ptr)
        return None if token == c.LLAMA_TOKEN_NULL else token

    @property
    def is_recurrent(self) -> bool:
        cdef core.ModelHandle handle = self.pin()
        return c.llama_model_is_recurrent(handle.get().ptr)

    @property
    def is_hybrid(self) -> bool:
        cdef core.ModelHandle handle = self.pin()
        return c.llama_model_is_hybrid(handle.get().ptr)

    @property
    def is_diffusion(self) -> bool:
        cdef core.ModelHandle handle = self.pin()
        return c.llama_model_is_diffusion(handle.get().ptr)

    def tensor_sample(self) -> bytes:
        """Names, types, shapes and a few bytes of every tensor of the file, for telling models apart."""
        cdef core.ModelHandle handle = self.pin()
        return bytes(handle.get().sample)

    @property
    def devices(self) -> list[Device]:
        """The devices its layers are on, without the CPU (``llama_model_get_device``)."""
        cdef core.ModelHandle handle = self.pin()
        return [wrap_device(x.llama_model_get_device(handle.get().ptr, i))
                for i in range(x.llama_model_n_devices(handle.get().ptr))]

    @property
    def n_expert(self) -> int:
        """Experts of a mixture-of-experts model, 0 without."""
        cdef core.ModelHandle handle = self.pin()
        return x.llama_model_n_expert(handle.get().ptr)

    @property
    def target_layer_ids(self) -> list[int]:
        """Layers of the target model whose inputs a drafter of this kind reads; empty for other models."""
        cdef core.ModelHandle handle = self.pin()
        cdef const int32_t* ids = x.llama_model_target_layer_ids(handle.get().ptr)
        return [ids[i] for i in range(x.llama_model_target_layer_ids_n(handle.get().ptr))]

    @property
    def dflash_selector_top_k(self) -> int:
        """Candidates that a DFlash drafter's selector keeps; 0 for other models."""
        cdef core.ModelHandle handle = self.pin()
        return x.llama_model_dflash_selector_top_k(handle.get().ptr)

    def tok_embd(self) -> NDArray[float32]:
        """The token embedding matrix, converted (``llama_model_get_tok_embd``).

        Returns
        -------
        numpy.ndarray
            float32, shape (n_vocab, n_embd).

        Raises
        ------
        Unsupported
            The model has none, or one that llama.cpp cannot convert.

        Notes
        -----
        Releases the GIL.
        """
        import numpy

        cdef core.ModelHandle handle = self.pin()
        cdef core.Status status
        cdef size_t n_embd = c.llama_model_n_embd(handle.get().ptr)
        cdef size_t n = 0
        cdef float[:, ::1] rows
        status = cmodel.token_embedding(handle.get()[0], NULL, n)
        check(status)
        matrix = numpy.empty((n // n_embd, n_embd), dtype=numpy.float32)
        rows = matrix
        with nogil:
            status = cmodel.token_embedding(handle.get()[0], &rows[0, 0], n)
        check(status)
        return matrix


cdef str _meta_text(const c.llama_model* model, int32_t i, bint key):
    cdef char small[256]
    cdef int32_t size
    if key:
        size = c.llama_model_meta_key_by_index(model, i, small, sizeof(small))
    else:
        size = c.llama_model_meta_val_str_by_index(model, i, small, sizeof(small))
    if size < 0:
        return ""
    if size < <int32_t>sizeof(small):
        return small[:size].decode("utf-8", "replace")
    cdef bytearray large = bytearray(size + 1)
    cdef char* buf = large
    if key:
        c.llama_model_meta_key_by_index(model, i, buf, size + 1)
    else:
        c.llama_model_meta_val_str_by_index(model, i, buf, size + 1)
    return bytes(large[:size]).decode("utf-8", "replace")
