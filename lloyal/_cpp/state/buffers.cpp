#include "state/buffers.hpp"

#include "core/fault.hpp"

#include <algorithm>
#include <atomic>
#include <string>

#if __has_include(<sys/mman.h>)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace lloyal {
namespace {

constexpr size_t ALIGNMENT = 256;          // of a buffer in its slab: what the strictest back end asks
constexpr size_t SLAB_SIZE = 64 << 20;     // of a slab that many share, at most
constexpr size_t SHARED = SLAB_SIZE / 4;   // a larger buffer has a slab of its own
constexpr int64_t MIN_RESERVE = 256 << 20; // what cuBLAS and the pools of a back end ask for, with some room

size_t aligned(size_t size) {
    return (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

bool shares(ggml_backend_buffer_type_t buft, size_t size) {
    return !ggml_backend_buft_is_host(buft) && size <= SHARED;
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

// Refuse what would leave a device less than the computation on it needs.
void check_reserve(ggml_backend_buffer_type_t buft, size_t size, int64_t reserve) {
    ggml_backend_dev_t device = ggml_backend_buft_get_device(buft);
    if (reserve == 0 || !device || ggml_backend_buft_is_host(buft)) {
        return;
    }
    size_t free = 0;
    size_t total = 0;
    ggml_backend_dev_memory(device, &free, &total);
    if (total == 0) {
        return; // it does not say
    }
    const size_t kept = size_t(reserve > 0 ? reserve : std::max(MIN_RESERVE, int64_t(total / 50)));
    if (free < size || free - size < kept) {
        throw DeviceMemoryError(
            std::string(ggml_backend_dev_name(device)) + " has " + std::to_string(free) +
            " bytes free, the checkpoint needs " + std::to_string(size) + " more and " + std::to_string(kept) +
            " are left for computing: release some, keep it on the host, or lower ctx.checkpoints.reserve");
    }
}

} // namespace

Slab::Slab(ggml_backend_buffer_type_t buft, size_t size)
    : buft_(buft), size_(size), buffer_(fault_now() ? nullptr : ggml_backend_buft_alloc_buffer(buft, size)) {
    if (!buffer_) {
        throw DeviceMemoryError(std::string(ggml_backend_buft_name(buft)) + " could not allocate " +
                                std::to_string(size) + " bytes");
    }
    free_.emplace(0, size);
    if (ggml_backend_buffer_is_host(buffer_)) {
        ask_for_huge_pages(ggml_backend_buffer_get_base(buffer_), size);
    }
}

Slab::~Slab() {
    ggml_backend_buffer_free(buffer_);
}

size_t Slab::best_fit(size_t size) const {
    size_t best = 0;
    for (const auto & [offset, have] : free_) {
        if (have >= size && (best == 0 || have < best)) {
            best = have;
        }
    }
    return best;
}

size_t Slab::take(size_t size) {
    const size_t have = best_fit(size);
    const auto at =
        std::find_if(free_.begin(), free_.end(), [have](const auto & piece) { return piece.second == have; });
    const size_t offset = at->first;
    const size_t taken = std::min(have, aligned(size));
    free_.erase(at);
    if (have > taken) {
        free_.emplace(offset + taken, have - taken);
    }
    used_ += taken;
    return offset;
}

void Slab::give_back(size_t offset, size_t size) {
    const size_t taken = std::min(size_ - offset, aligned(size));
    used_ -= taken;
    auto at = free_.emplace(offset, taken).first;
    if (const auto next = std::next(at); next != free_.end() && at->first + at->second == next->first) {
        at->second += next->second;
        free_.erase(next);
    }
    if (at != free_.begin()) {
        if (const auto before = std::prev(at); before->first + before->second == at->first) {
            before->second += at->second;
            free_.erase(at);
        }
    }
}

DeviceBuffer::DeviceBuffer(std::shared_ptr<Slab> slab, size_t size)
    : slab_(std::move(slab)), size_(size), offset_(slab_->take(size)) {
    tensor_.type = GGML_TYPE_I8;
    tensor_.ne[0] = int64_t(size);
    tensor_.ne[1] = tensor_.ne[2] = tensor_.ne[3] = 1;
    tensor_.nb[0] = 1;
    tensor_.nb[1] = tensor_.nb[2] = tensor_.nb[3] = size;
    ggml_backend_buffer_t buffer = slab_->buffer();
    ggml_backend_tensor_alloc(buffer, &tensor_, static_cast<char *>(ggml_backend_buffer_get_base(buffer)) + offset_);
}

// A slab with room, out of what there is; null if there is none.
std::shared_ptr<Slab> BufferPool::find(ggml_backend_buffer_type_t buft, size_t size) {
    if (shares(buft, size)) {
        std::shared_ptr<Slab> best;
        size_t least = 0;
        for (const auto & slab : shared_) {
            const size_t have = slab->buft() == buft ? slab->best_fit(size) : 0;
            if (have > 0 && (!best || have < least)) {
                best = slab;
                least = have;
            }
        }
        return best;
    }
    auto best = whole_.end();
    for (auto it = whole_.begin(); it != whole_.end(); ++it) {
        const size_t have = (*it)->size();
        if ((*it)->buft() == buft && have >= size && have <= size + (exact_ ? 0 : size / 16) &&
            (best == whole_.end() || have < (*best)->size())) {
            best = it;
        }
    }
    if (best == whole_.end()) {
        return nullptr;
    }
    std::shared_ptr<Slab> slab = std::move(*best);
    whole_.erase(best);
    return slab;
}

// `size` bytes, or `at_least` so many where that is all there is. Idle memory goes back before that fails.
std::shared_ptr<Slab> BufferPool::allocate(ggml_backend_buffer_type_t buft, size_t size, size_t at_least) {
    const int64_t reserve = this->reserve();
    for (bool trimmed = false;;) {
        try {
            check_reserve(buft, size, reserve);
            return std::make_shared<Slab>(buft, size);
        } catch (const DeviceMemoryError &) {
            if (size > at_least) {
                size = at_least;
            } else if (!trimmed && idle_bytes() > 0) {
                trimmed = true;
                trim();
            } else {
                throw;
            }
        }
    }
}

std::shared_ptr<DeviceBuffer> BufferPool::acquire(ggml_backend_buffer_type_t buft, size_t size) {
    std::unique_ptr<DeviceBuffer> buffer;
    const auto hold = [&](std::shared_ptr<Slab> slab) {
        // One that held a little more counts as what it is.
        const size_t n = shares(buft, size) ? size : slab->size();
        buffer = std::make_unique<DeviceBuffer>(std::move(slab), n);
        live_[buft] += n;
    };
    size_t held = 0;
    {
        std::lock_guard<std::mutex> lock(mutex_);
        if (std::shared_ptr<Slab> slab = find(buft, size)) {
            hold(std::move(slab));
        }
        held = live_[buft];
    }
    if (!buffer) {
        // Half as much again as there is: the number of slabs grows with the logarithm of what they hold.
        const size_t most = std::min(SLAB_SIZE, ggml_backend_buft_get_max_size(buft));
        const size_t more = shares(buft, size) ? std::max(aligned(size), std::min(most, aligned(held / 2))) : size;
        std::shared_ptr<Slab> slab = allocate(buft, more, shares(buft, size) ? aligned(size) : size);
        std::lock_guard<std::mutex> lock(mutex_);
        if (shares(buft, size)) {
            shared_.push_back(slab);
        }
        hold(std::move(slab));
    }
    return std::shared_ptr<DeviceBuffer>(buffer.release(),
                                         [pool = shared_from_this()](DeviceBuffer * b) { pool->give_back(b); });
}

void BufferPool::give_back(DeviceBuffer * raw) {
    std::vector<std::shared_ptr<Slab>> freed; // freed without the lock
    std::unique_ptr<DeviceBuffer> buffer(raw);
    std::lock_guard<std::mutex> lock(mutex_);
    live_[buffer->buft()] -= buffer->size();
    std::shared_ptr<Slab> slab = buffer->slab();
    const bool shared = std::find(shared_.begin(), shared_.end(), slab) != shared_.end();
    buffer.reset();
    if (shared) {
        size_t empty = 0;
        for (const auto & one : shared_) {
            empty += one->used() == 0 && one->buft() == slab->buft() ? one->size() : 0;
        }
        if (slab->used() == 0 && empty > std::max(SLAB_SIZE, largest_)) {
            std::erase(shared_, slab);
            freed.push_back(std::move(slab));
        }
        return;
    }
    whole_.push_back(std::move(slab));
    size_t idle = 0;
    for (const auto & one : whole_) {
        idle += one->size();
    }
    // The oldest go first. A buffer may be a sixteenth larger than what was asked for.
    while (idle > largest_ + largest_ / 16 + 4096 || whole_.size() > 64) {
        idle -= whole_.front()->size();
        freed.push_back(std::move(whole_.front()));
        whole_.erase(whole_.begin());
    }
}

void BufferPool::expect(size_t bytes, bool exact) {
    std::lock_guard<std::mutex> lock(mutex_);
    exact_ = exact;
    largest_ = std::max(largest_, bytes);
}

void BufferPool::trim() {
    std::vector<std::shared_ptr<Slab>> freed;
    std::lock_guard<std::mutex> lock(mutex_);
    freed.swap(whole_);
    for (const auto & slab : shared_) {
        if (slab->used() == 0) {
            freed.push_back(slab);
        }
    }
    std::erase_if(shared_, [](const auto & slab) { return slab->used() == 0; });
    largest_ = 0;
}

size_t BufferPool::idle_bytes() const {
    std::lock_guard<std::mutex> lock(mutex_);
    size_t idle = 0;
    for (const auto & slab : whole_) {
        idle += slab->size();
    }
    for (const auto & slab : shared_) {
        idle += slab->size() - slab->used();
    }
    return idle;
}

std::map<ggml_backend_buffer_type_t, size_t> BufferPool::live_bytes() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return live_;
}

int64_t BufferPool::reserve() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return reserve_;
}

void BufferPool::set_reserve(int64_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    reserve_ = bytes;
}

} // namespace lloyal
