// How a batch is computed: at once, in slices, or not at all. llama.cpp cuts a batch into micro-batches and plans all of them
// before it computes the first; where a plan would lose rows, or a model computes several sequences wrongly, it gets slices.
#pragma once

#include "core/handles.hpp"
#include "decode/batch.hpp"

#include "llama-kv-cells.h"

#include <memory>
#include <vector>

struct llama_batch_ext;

namespace lloyal {

struct BatchExtDeleter {
    void operator()(llama_batch_ext * batch) const;
};
using BatchExtPtr = std::unique_ptr<llama_batch_ext, BatchExtDeleter>;

// llama.cpp's own form of a batch that is known to be valid. Throws.
BatchExtPtr native_batch(ContextBox & box, const Batch & batch);

// The cells of a window cache as they are, to put back what a plan takes away for good.
class WindowCells {
  public:
    explicit WindowCells(ContextBox & box);
    // Put back what is gone since. True if some of it is attended to by the next token of its sequence.
    bool put_back();

  private:
    struct Row {
        SeqId stream; // a sequence that lies there
        uint32_t cell;
        Pos pos;
        llama_kv_cell_ext ext;
        llama_kv_cells::seq_set_t seqs;
    };

    ContextBox * box_;
    std::vector<Row> rows_;
};

// Drop what no token will attend to from the window cache: llama.cpp reuses such cells, but never shared ones.
void drop_stale_window(ContextBox & box);

// Tokens of several sequences are computed once, for the first one, so the sequences must be the same up to there.
Status check_coupled(const ContextBox & box, const Batch & batch);

// What llama.cpp's return code 1 means.
Status cache_full(const Batch & batch);

// Decide how a valid batch is to be computed: as it is (`slices` stays empty), or in these slices one after another.
// Nothing is changed by it.
Status plan_decode(ContextBox & box, const Batch & batch, std::vector<Batch> & slices);

} // namespace lloyal
