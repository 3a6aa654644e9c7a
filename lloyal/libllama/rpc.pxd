# Declarations of the parts of ggml-rpc.h that ring 1 uses. Its functions are found by name, see _cpp/model/rpc.cpp.

cdef extern from "ggml-rpc.h" nogil:
    const int RPC_PROTO_MAJOR_VERSION
    const int RPC_PROTO_MINOR_VERSION
