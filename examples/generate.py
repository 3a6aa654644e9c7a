"""Text from a prompt, printed as it comes: ``python generate.py [MODEL [PROMPT]]``."""

import sys

import lloyal

path = sys.argv[1] if len(sys.argv) > 1 else lloyal.models.path("nano")
prompt = sys.argv[2] if len(sys.argv) > 2 else "def "

with lloyal.Model(path) as model, lloyal.Context(model, n_ctx=1024, n_seq_max=1, n_threads=1) as ctx:
    generation = lloyal.generate(ctx, prompt, max_tokens=64, sampling=lloyal.Sampling(temperature=0.6))
    print(prompt, end="")
    for piece in generation.text(stop="\n\n\n"):
        print(piece, end="", flush=True)
    print(f"\n\n{len(generation.tokens)} tokens, seed {generation.sampler.seed}, stopped by: {generation.stop_reason}")
