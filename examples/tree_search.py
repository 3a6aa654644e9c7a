"""Tree search: go on from the best place found so far, several ways at once, and keep that place in a checkpoint.

Each round the most promising checkpoint is taken up by three forks, which write a line each. The new places join the
others; those that nobody comes back to cost a checkpoint, not a sequence.
"""

import heapq

import lloyal

PROMPT = "class Stack:\n    def __init__(self):\n"
ROUNDS, WIDTH, LENGTH = 6, 3, 12

ctx = lloyal.Context(lloyal.Model(lloyal.models.path()), n_ctx=1024, n_seq_max=WIDTH + 1, n_threads=1)
with lloyal.BranchStore(ctx) as store:
    trunk = store.create(PROMPT, sampling=lloyal.Sampling(temperature=1.0))
    # (perplexity, which, checkpoint, text): the smallest perplexity comes off first.
    places = [(1.0, 0, trunk.checkpoint(), "")]
    made = 0
    best = (float("inf"), "")
    for round_ in range(ROUNDS):
        _, _, place, _ = heapq.heappop(places)
        trunk.restore(place)
        forks = trunk.fork(WIDTH, seed=100 * round_)
        for _ in range(LENGTH):
            store.step()
        for fork in forks:
            made += 1
            best = min(best, (fork.perplexity, fork.text))
            if not fork.ended:
                heapq.heappush(places, (fork.perplexity, made, fork.checkpoint(), fork.text))
            fork.prune()
        print(f"round {round_ + 1}: {len(places)} places, {ctx.checkpoints.nbytes / 2**20:.2f} MiB, best {best[0]:.3f}")
    print(f"\n{PROMPT}{best[1]}")
