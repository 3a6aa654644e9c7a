"""Four clients of one context at once: each reads its own text as it comes, and one of them goes away half way.

The engine computes in a thread of its own, a token for every text in one batch. What a server would do for its
connections is what the tasks here do.
"""

import asyncio

import lloyal

PROMPTS = ["import ", "def read_lines(path):\n", "class Stack:\n", "# "]


async def client(engine: lloyal.aio.Engine, number: int, patience: int) -> None:
    stream = engine.generate(PROMPTS[number], max_tokens=32, sampling=lloyal.Sampling(seed=number))
    text = PROMPTS[number]
    async for piece in stream:
        text += piece
        if len(stream.tokens) >= patience:
            await stream.aclose()  # the others notice nothing
            break
    why = stream.stop_reason or "it went away"
    print(f"client {number}: {len(stream.tokens)} tokens, over: {why}\n    {text!r}")


async def main() -> None:
    with lloyal.Model(lloyal.models.path()) as model, lloyal.Context(model, n_ctx=1024, n_threads=1) as ctx:
        async with lloyal.aio.Engine(ctx) as engine:
            await asyncio.gather(*(client(engine, number, 8 if number == 2 else 100) for number in range(4)))


asyncio.run(main())
