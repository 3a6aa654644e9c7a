# Declarations of rpc.hpp.

from libcpp.memory cimport shared_ptr
from libcpp.string cimport string
from libcpp.vector cimport vector

cimport lloyal._cpp.core as core
cimport lloyal.libllama.ggml as g

cdef extern from "rpc.hpp" namespace "lloyal" nogil:
    cppclass RpcConnection:
        string endpoint
    ctypedef shared_ptr[RpcConnection] RpcHandle

    RpcHandle rpc_connected(const string& endpoint)
    core.Status rpc_connect(const string& endpoint, RpcHandle& out)
    core.Status rpc_devices(const string& endpoint, vector[g.ggml_backend_dev_t]& out)
    string rpc_endpoint(g.ggml_backend_dev_t device)
    void model_keep(core.ModelBox& model, const RpcHandle& connection)
    core.Status rpc_serve(const string& endpoint, const string& cache_dir, size_t n_threads,
                          vector[g.ggml_backend_dev_t]& devices)
