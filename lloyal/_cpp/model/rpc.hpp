// Connections to RPC servers, whose devices compute and hold memory in other processes.
//
// llama.cpp keeps one socket per endpoint for as long as anything uses it, and aborts the process when it cannot open
// one. So whoever needs an RPC device holds a connection of ours; `lloyal.llama.rpc` asks the server first whether it
// is there, and opens one only then.
#pragma once

#include "core/handles.hpp"
#include "core/status.hpp"

#include "ggml-backend.h"

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

namespace lloyal {

struct RpcConnection {
    std::string endpoint;
    ggml_backend_t backend; // what keeps llama.cpp's socket open

    RpcConnection(std::string where, ggml_backend_t opened);
    RpcConnection(const RpcConnection &) = delete;
    ~RpcConnection();
};
using RpcHandle = std::shared_ptr<RpcConnection>;

// The open connection to `endpoint`, or null.
RpcHandle rpc_connected(const std::string & endpoint);

// Connect to a server that was just seen to answer. Aborts the process if it has gone since.
Status rpc_connect(const std::string & endpoint, RpcHandle & out) noexcept;

// The devices of a server that is connected, the same pointers every time.
Status rpc_devices(const std::string & endpoint, std::vector<ggml_backend_dev_t> & out) noexcept;

// The endpoint of an RPC device; empty for any other.
std::string rpc_endpoint(ggml_backend_dev_t device);

// Keep a connection for as long as the model's weights live.
void model_keep(ModelBox & model, const RpcHandle & connection);

// Serve `devices` until the process ends; returns only if the server could not start.
Status rpc_serve(const std::string & endpoint, const std::string & cache_dir, size_t n_threads,
                 std::vector<ggml_backend_dev_t> & devices) noexcept;

} // namespace lloyal
