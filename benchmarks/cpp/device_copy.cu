// What a device-to-device copy reaches on this card: gigabytes a second of one cudaMemcpyAsync, best size first.
//
//     nvcc -O2 -o build/device_copy benchmarks/cpp/device_copy.cu && build/device_copy
//
// Bytes copied, not bytes read plus written: the same count as for a checkpoint.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include <cuda_runtime.h>

static void check(cudaError_t error, const char * what) {
    if (error != cudaSuccess) {
        std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
        std::exit(1);
    }
}

int main() {
    constexpr int ROUNDS = 21;
    for (size_t mib = 16; mib <= 1024; mib *= 4) {
        const size_t size = mib << 20;
        void *       from = nullptr;
        void *       to   = nullptr;
        check(cudaMalloc(&from, size), "cudaMalloc");
        check(cudaMalloc(&to, size), "cudaMalloc");
        check(cudaMemset(from, 1, size), "cudaMemset");
        cudaEvent_t begin, end;
        check(cudaEventCreate(&begin), "cudaEventCreate");
        check(cudaEventCreate(&end), "cudaEventCreate");
        std::vector<float> ms;
        for (int i = 0; i < ROUNDS; ++i) {
            check(cudaEventRecord(begin), "cudaEventRecord");
            check(cudaMemcpyAsync(to, from, size, cudaMemcpyDeviceToDevice), "cudaMemcpyAsync");
            check(cudaEventRecord(end), "cudaEventRecord");
            check(cudaEventSynchronize(end), "cudaEventSynchronize");
            float taken = 0;
            check(cudaEventElapsedTime(&taken, begin, end), "cudaEventElapsedTime");
            ms.push_back(taken);
        }
        std::sort(ms.begin(), ms.end());
        std::printf("%5zu MiB  %8.1f GB/s\n", mib, double(size) / (ms[ROUNDS / 2] * 1e6));
        check(cudaFree(from), "cudaFree");
        check(cudaFree(to), "cudaFree");
    }
    return 0;
}
