#include "copy.hpp"

#include "llama-context.h"

#include "ggml-backend-impl.h"

#include <algorithm>
#include <cstring>

#if __has_include(<sys/mman.h>)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace lloyal {
namespace {

std::atomic<int64_t> fault_countdown{-1};

bool fault_now() {
    if (fault_countdown.load(std::memory_order_relaxed) < 0) {
        return false;
    }
    return fault_countdown.fetch_sub(1, std::memory_order_relaxed) == 0;
}

// A view of `size` bytes of a tensor, whatever its type.
ggml_tensor byte_view(ggml_tensor * base, size_t offset, size_t size) {
    ggml_tensor view{};
    view.type = GGML_TYPE_I8;
    view.ne[0] = int64_t(size);
    view.ne[1] = view.ne[2] = view.ne[3] = 1;
    view.nb[0] = 1;
    view.nb[1] = view.nb[2] = view.nb[3] = size;
    view.view_src = base->view_src ? base->view_src : base;
    view.view_offs = base->view_offs + offset;
    ggml_backend_view_init(&view);
    return view;
}

bool is_host(const ggml_tensor * tensor) {
    return ggml_backend_buffer_is_host(tensor->buffer);
}

// The back end of the context that computes on tensors of this buffer type, if it can queue copies.
ggml_backend_t queue_for(llama_context & context, ggml_backend_buffer_type_t buft) {
    ggml_backend_sched_t sched = context.get_sched();
    for (int i = 0; i < ggml_backend_sched_get_n_backends(sched); ++i) {
        ggml_backend_t backend = ggml_backend_sched_get_backend(sched, i);
        if (backend->iface.cpy_tensor_async && ggml_backend_get_device(backend) == ggml_backend_buft_get_device(buft)) {
            return backend;
        }
    }
    return nullptr;
}

// The first save into fresh host memory mostly waits for pages: with huge ones it takes half the time.
void ask_for_huge_pages([[maybe_unused]] void * base, [[maybe_unused]] size_t size) {
#ifdef MADV_HUGEPAGE
    constexpr size_t HUGE = 2 << 20;
    if (size >= 4 * HUGE) {
        const size_t page = size_t(sysconf(_SC_PAGESIZE));
        const auto begin = (reinterpret_cast<uintptr_t>(base) + page - 1) / page * page;
        const auto end = (reinterpret_cast<uintptr_t>(base) + size) / page * page;
        (void)madvise(reinterpret_cast<void *>(begin), end - begin, MADV_HUGEPAGE); // a hint: nothing depends on it
    }
#endif
}

} // namespace

void fault_arm(int64_t n) {
    fault_countdown.store(n, std::memory_order_relaxed);
}

int64_t fault_remaining() {
    return fault_countdown.load(std::memory_order_relaxed);
}

DeviceBuffer::DeviceBuffer(ggml_backend_buffer_type_t buft, size_t size)
    : buft_(buft), size_(size), buffer_(fault_now() ? nullptr : ggml_backend_buft_alloc_buffer(buft, size)) {
    if (!buffer_) {
        throw DeviceMemoryError(std::string(ggml_backend_buft_name(buft)) + " could not allocate " +
                                std::to_string(size) + " bytes");
    }
    tensor_.type = GGML_TYPE_I8;
    tensor_.ne[0] = int64_t(size);
    tensor_.ne[1] = tensor_.ne[2] = tensor_.ne[3] = 1;
    tensor_.nb[0] = 1;
    tensor_.nb[1] = tensor_.nb[2] = tensor_.nb[3] = size;
    ggml_backend_tensor_alloc(buffer_, &tensor_, ggml_backend_buffer_get_base(buffer_));
    if (ggml_backend_buffer_is_host(buffer_)) {
        ask_for_huge_pages(tensor_.data, size);
    }
}

DeviceBuffer::~DeviceBuffer() {
    ggml_backend_buffer_free(buffer_);
}

std::shared_ptr<DeviceBuffer> BufferPool::acquire(ggml_backend_buffer_type_t buft, size_t size) {
    std::unique_ptr<DeviceBuffer> buffer;
    {
        std::lock_guard<std::mutex> lock(mutex_);
        auto best = idle_.end();
        for (auto it = idle_.begin(); it != idle_.end(); ++it) {
            const size_t have = (*it)->size();
            if ((*it)->buft() == buft && have >= size && have <= size + (exact_ ? 0 : size / 16) &&
                (best == idle_.end() || have < (*best)->size())) {
                best = it;
            }
        }
        if (best != idle_.end()) {
            buffer = std::move(*best);
            idle_.erase(best);
            idle_bytes_ -= buffer->size();
        }
    }
    if (!buffer) {
        try {
            buffer = std::make_unique<DeviceBuffer>(buft, size);
        } catch (const DeviceMemoryError &) {
            if (idle_bytes() == 0) {
                throw;
            }
            trim();
            buffer = std::make_unique<DeviceBuffer>(buft, size);
        }
    }
    {
        std::lock_guard<std::mutex> lock(mutex_);
        live_[buft] += buffer->size();
    }
    return std::shared_ptr<DeviceBuffer>(buffer.release(),
                                         [pool = shared_from_this()](DeviceBuffer * b) { pool->give_back(b); });
}

void BufferPool::give_back(DeviceBuffer * raw) {
    std::unique_ptr<DeviceBuffer> buffer(raw);
    std::vector<std::unique_ptr<DeviceBuffer>> freed; // freed without the lock
    std::lock_guard<std::mutex> lock(mutex_);
    live_[buffer->buft()] -= buffer->size();
    idle_bytes_ += buffer->size();
    idle_.push_back(std::move(buffer));
    // The oldest go first. A buffer may be a sixteenth larger than what was asked for.
    while (idle_bytes_ > largest_ + largest_ / 16 + 4096 || idle_.size() > 64) {
        idle_bytes_ -= idle_.front()->size();
        freed.push_back(std::move(idle_.front()));
        idle_.erase(idle_.begin());
    }
}

void BufferPool::expect(size_t bytes, bool exact) {
    std::lock_guard<std::mutex> lock(mutex_);
    exact_ = exact;
    largest_ = std::max(largest_, bytes);
}

void BufferPool::trim() {
    std::vector<std::unique_ptr<DeviceBuffer>> freed;
    std::lock_guard<std::mutex> lock(mutex_);
    freed.swap(idle_);
    idle_bytes_ = 0;
    largest_ = 0;
}

size_t BufferPool::idle_bytes() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return idle_bytes_;
}

std::map<ggml_backend_buffer_type_t, size_t> BufferPool::live_bytes() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return live_;
}

void CopyList::run(llama_context & context) const {
    std::vector<ggml_backend_t> queued;
    std::map<ggml_backend_buffer_type_t, ggml_backend_t> queues;
    for (const Copy & copy : copies_) {
        if (fault_now()) {
            for (ggml_backend_t backend : queued) {
                ggml_backend_synchronize(backend);
            }
            throw std::runtime_error("a device copy failed (injected)");
        }
        if (is_host(copy.src) && is_host(copy.dst)) {
            std::memcpy(static_cast<char *>(copy.dst->data) + copy.dst_offset,
                        static_cast<const char *>(copy.src->data) + copy.src_offset, copy.size);
            continue;
        }
        ggml_tensor src = byte_view(copy.src, copy.src_offset, copy.size);
        ggml_tensor dst = byte_view(copy.dst, copy.dst_offset, copy.size);
        ggml_backend_t backend = nullptr;
        ggml_backend_buffer_type_t buft = ggml_backend_buffer_get_type(copy.src->buffer);
        if (buft == ggml_backend_buffer_get_type(copy.dst->buffer)) {
            const auto found = queues.find(buft);
            backend = found != queues.end() ? found->second : (queues[buft] = queue_for(context, buft));
        }
        if (backend) {
            ggml_backend_tensor_copy_async(backend, backend, &src, &dst);
            if (std::find(queued.begin(), queued.end(), backend) == queued.end()) {
                queued.push_back(backend);
            }
        } else {
            ggml_backend_tensor_copy(&src, &dst);
        }
    }
    for (ggml_backend_t backend : queued) {
        ggml_backend_synchronize(backend);
    }
}

} // namespace lloyal
