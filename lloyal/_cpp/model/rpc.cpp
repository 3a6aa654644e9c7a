#include "model/rpc.hpp"

#include "core/fork.hpp"
#include "core/log.hpp"

#include <cstring>
#include <map>
#include <mutex>

namespace lloyal {
namespace {

using AddServer = ggml_backend_reg_t (*)(const char * endpoint);
using StartServer = void (*)(const char * endpoint, const char * cache_dir, size_t n_threads, size_t n_devices,
                             ggml_backend_dev_t * devices);

std::mutex mutex;
std::map<std::string, std::weak_ptr<RpcConnection>> connections;

// By name, so that it is found whether the RPC back end is linked in or a plug-in.
template <typename F> F rpc_function(const char * name) {
    ggml_backend_reg_t reg = ggml_backend_reg_by_name("RPC");
    return reg ? reinterpret_cast<F>(ggml_backend_reg_get_proc_address(reg, name)) : nullptr;
}

Status no_backend() {
    return Status(Code::unsupported, "this build has no RPC back end: build with LLOYAL_RPC=ON");
}

} // namespace

RpcConnection::RpcConnection(std::string where, ggml_backend_t opened) : endpoint(std::move(where)), backend(opened) {
    ++live_counts().connections;
}

RpcConnection::~RpcConnection() {
    ggml_backend_free(backend);
    --live_counts().connections;
}

RpcHandle rpc_connected(const std::string & endpoint) {
    std::lock_guard<std::mutex> lock(mutex);
    const auto found = connections.find(endpoint);
    return found == connections.end() ? nullptr : found->second.lock();
}

Status rpc_devices(const std::string & endpoint, std::vector<ggml_backend_dev_t> & out) noexcept {
    return guarded(Code::load_failed, [&]() -> Status {
        const auto add_server = rpc_function<AddServer>("ggml_backend_rpc_add_server");
        if (!add_server) {
            return no_backend();
        }
        ggml_backend_reg_t reg = add_server(endpoint.c_str());
        for (size_t i = 0; reg && i < ggml_backend_reg_dev_count(reg); ++i) {
            out.push_back(ggml_backend_reg_dev_get(reg, i));
        }
        return out.empty() ? Status(Code::load_failed, text("the RPC server at ", endpoint, " has no devices"))
                           : Status();
    });
}

Status rpc_connect(const std::string & endpoint, RpcHandle & out) noexcept {
    return guarded(Code::load_failed, [&]() -> Status {
        log_mark();
        std::vector<ggml_backend_dev_t> devices;
        if (Status status = rpc_devices(endpoint, devices); !status.ok()) {
            return status;
        }
        ggml_backend_t backend = ggml_backend_dev_init(devices[0], nullptr);
        if (!backend) {
            return Status(Code::load_failed, text("llama.cpp could not connect to the RPC server at ", endpoint));
        }
        out = make_handle<RpcConnection>(endpoint, backend);
        std::lock_guard<std::mutex> lock(mutex);
        connections[endpoint] = out;
        return {};
    });
}

std::string rpc_endpoint(ggml_backend_dev_t device) {
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(device);
    if (!reg || std::strcmp(ggml_backend_reg_name(reg), "RPC") != 0) {
        return {};
    }
    return ggml_backend_dev_description(device);
}

void model_keep(ModelBox & model, const RpcHandle & connection) {
    model.keeps.push_back(connection);
}

Status rpc_serve(const std::string & endpoint, const std::string & cache_dir, size_t n_threads,
                 std::vector<ggml_backend_dev_t> & devices) noexcept {
    return guarded(Code::load_failed, [&]() -> Status {
        log_mark();
        const auto start_server = rpc_function<StartServer>("ggml_backend_rpc_start_server");
        if (!start_server) {
            return no_backend();
        }
        start_server(endpoint.c_str(), cache_dir.empty() ? nullptr : cache_dir.c_str(), n_threads, devices.size(),
                     devices.data());
        return Status(Code::load_failed, text("the RPC server at ", endpoint, " stopped"));
    });
}

} // namespace lloyal
