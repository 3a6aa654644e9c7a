// How an attention cache lies in its tensors: where the bytes of a cell are.
#pragma once

#include "memory/provenance.hpp"
#include "state/copy.hpp"

#include "ggml.h"

#include <cstddef>
#include <cstdint>
#include <vector>

class llama_kv_cache;
struct llama_hparams;

namespace lloyal {

// K or V of one layer, for the cells of one stream.
struct RowTensor {
    ggml_tensor * tensor;
    size_t begin;      // bytes in it before this stream
    size_t piece;      // bytes of one piece of a cell: a whole row, or one element where V is transposed
    uint32_t n_pieces; // pieces per cell: 1, or the width of V where it is transposed
    size_t stride;     // bytes from one piece of a cell to its next
    uint32_t n_cells;

    size_t row_bytes() const { return piece * n_pieces; }
    size_t offset(uint32_t cell, uint32_t k) const { return begin + k * stride + cell * piece; }
    RowPlace place() const { return {tensor, begin, stride, n_cells}; }
};

// The tensors of one cache, in the order in which llama.cpp writes and reads its state.
struct KvLayout {
    llama_kv_cache * cache = nullptr;
    uint32_t n_stream = 1;
    bool has_ext = false;
    std::vector<uint8_t> header;                 // what follows the cell table there: layer count, types, row sizes
    std::vector<std::vector<RowTensor>> streams; // by stream: the tensors differ, their shapes do not

    KvLayout(llama_kv_cache * cache, const llama_hparams & hparams, bool v_trans);
    const std::vector<RowTensor> & tensors(SeqId seq) const;
    size_t row_bytes() const;
};

} // namespace lloyal
