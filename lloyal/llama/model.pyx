# cython: language_level=3
"""Models: weights, vocabulary and metadata, loaded once and shared by contexts."""

from libc.stdint cimport int32_t
from libcpp.string cimport string

cimport lloyal._cpp.core as core
cimport lloyal._cpp.model as cmodel
cimport lloyal.libllama.llama as c
cimport lloyal.libllama.llama_ext as x
from lloyal.llama.backend cimport ensure_started, wrap_device
from lloyal.llama.base cimport Closing
from lloyal.llama.load cimport load
from lloyal.llama.status cimport check, check_process
from lloyal.llama.vocab cimport wrap_vocab

import dataclasses
import os
from collections.abc import Sequence

from lloyal.errors import Closed, InvalidArgument, Unsupported
from lloyal.llama.files import whole_file
from lloyal.llama.load import check_file
from lloyal.llama.params import ModelParams, exact, from_keywords, signature

__all__ = ["Model"]


cdef class Model(Closing):
    """A loaded GGUF model (``llama_model``).

    It keeps alive the devices and overrides it was loaded with; contexts, vocabularies and samplers made from it keep
    the weights alive, so `close()` may be called at any time, more than once, in any order.

    Parameters
    ----------
    path : str, os.PathLike, or a sequence of them
        The GGUF file; for a split model its first part (the rest is found by name) or all parts in order.
    params : ModelParams, optional
        All parameters at once; or
    **keywords
        the fields of `ModelParams`: n_gpu_layers, devices, use_mmap, progress, ...

    Raises
    ------
    LoadFailed
        The file is missing, unreadable, not GGUF, truncated, of an architecture llama.cpp does not know, or says of
        itself what cannot be. A tensor whose type does not suit its use is named when a context is made.
    UnknownParameter, InvalidArgument
        A keyword is unknown or its value impossible.
    Aborted
        `progress` returned False.

    Notes
    -----
    Loading releases the GIL. A mapped file (``use_mmap``, the default) that is cut short while the model is in use ends
    the process (SIGBUS): write the new one beside it and rename.
    """

    __signature__ = signature(ModelParams, "path")

    def __init__(self, path: StrPath | Sequence[StrPath], params: ModelParams | None = None, **keywords: Unpack[ModelParams]):
        if params is None:
            params = from_keywords(ModelParams, keywords)
        elif keywords:
            raise InvalidArgument(f"give params or keywords, not both: {', '.join(keywords)}")
        else:
            params = exact(ModelParams, params)
        ensure_started()
        if not isinstance(path, (str, bytes, os.PathLike, Sequence)):
            raise TypeError(f"path={path!r} must be a path or a sequence of paths")
        paths = [path] if isinstance(path, (str, bytes, os.PathLike)) else list(path)
        if not paths:
            raise InvalidArgument("path is an empty sequence")
        paths = [os.fsdecode(part) for part in paths]
        for part in paths:
            check_file(part)
        self.path = paths[0]
        self.handle = load(paths, params)
        self.params = dataclasses.replace(params, use_extra_bufts=self.handle.get().extra_bufts)

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

    def save(self, path: StrPath) -> None:
        """Write the model as one GGUF file (`llama_model_save_to_file`), which may be the one it was loaded from.

        Raises
        ------
        Unsupported
            The model was loaded with vocab_only=True, or its weights were repacked (use_extra_bufts=True).
        OSError
            It cannot be written there; what was there before is untouched.

        Notes
        -----
        Releases the GIL.
        """
        cdef core.ModelHandle handle = self.pin()
        cdef core.Status status
        cdef string name
        if self.params.vocab_only:
            raise Unsupported("the model was loaded with vocab_only=True: it has no weights to save")
        with whole_file(os.fsdecode(path)) as temporary:
            name = os.fsencode(temporary)
            with nogil:
                status = core.model_save(handle.get()[0], name)
            check(status)
            check_file(temporary)  # llama.cpp does not report that it could not write

    def __repr__(self):
        return f"<Model {self.path!r} closed>" if self.closed else f"<Model {self.path!r}: {self.desc}>"


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
