"""One prompt read once, its state kept in device memory, and several texts that go on from it.

A state holds no logits. It is therefore saved before the prompt's last token, and every text begins by decoding that.
"""

import lloyal

ON_DEVICE = lloyal.StateSeqFlags.ON_DEVICE
PROMPT = '''class Stack:
    """Last in, first out."""

    def __init__(self):
        self.items = []

    def'''

model = lloyal.Model(lloyal.models.path("nano-hybrid"))
ctx = lloyal.Context(model, n_ctx=1024, n_seq_max=2, n_threads=1)
tokens = model.vocab.tokenize(PROMPT)

lloyal.prefill(ctx, tokens[:-1], logits=False)
state = ctx.state_seq_get_data_ext(0, ON_DEVICE)
print(f"{ctx.memory.kind} memory: {len(state)} bytes describe it, the rows stay on the device")


def go_on(seed: int, seq_id: int) -> str:
    ctx.state_seq_set_data_ext(state, seq_id, ON_DEVICE)
    sampling = lloyal.Sampling(seed=seed)
    return "".join(lloyal.generate(ctx, tokens[-1:], max_tokens=24, sampling=sampling, seq_id=seq_id).text())


first = go_on(seed=1, seq_id=0)
print(f"\nseed 1:\n    def{first}")
print(f"\nseed 2:\n    def{go_on(seed=2, seq_id=0)}")
print(f"\nseed 1 in the other sequence is the same text: {go_on(seed=1, seq_id=1) == first}")

# The device keeps one such state per sequence: saving again replaces it, and the older one is refused.
ctx.state_seq_get_data_ext(0, ON_DEVICE)
try:
    go_on(seed=1, seq_id=0)
except lloyal.errors.StaleCheckpoint as error:
    print(f"\nafter another save: {error}")
