"""Many tasks, one engine: each text is what it would be alone, whatever happens to the others."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import lloyal
from lloyal.aio import Engine, TextStream
from lloyal.errors import Busy, CacheFull, Closed, InvalidArgument, InvalidGrammar, LloyalError
from lloyal.kv import Tenancy
from lloyal.sampling import Sampling
from lloyal.scheduler import Scheduler, Text
from lloyal.speculative import NGram, Speculator
from tests.models import tiny, tokens

Make = Callable[..., lloyal.Context]
GREEDY = Sampling(temperature=0)
# Batches of another shape round otherwise: with 32 bits everywhere that is far below any choice.
EXACT = {"type_k": "f32", "type_v": "f32"}


def run(main: Callable[[], Awaitable[Any]], seconds: float = 60) -> Any:
    return asyncio.run(asyncio.wait_for(main(), seconds))  # type: ignore[arg-type]


def new(new_context: Make, name: str = "llama", **parameters: Any) -> lloyal.Context:
    with lloyal.Model(tiny(name)) as model:
        return new_context(model, **(EXACT | {"n_ctx": 1024, "n_seq_max": 8} | parameters))


def alone(ctx: lloyal.Context, prompt: Any, n: int, sampling: Sampling = GREEDY) -> list[int]:
    ctx.memory.clear()
    return list(lloyal.generate(ctx, prompt, max_tokens=n, sampling=sampling))


async def until_free(ctx: lloyal.Context, n: int) -> None:
    """Until so many sequences are free."""
    while True:
        try:
            if Tenancy(ctx).available == n:
                return
        except Busy:
            pass
        await asyncio.sleep(0.001)


@pytest.mark.parametrize(("seed", "guesses"), [(0, 0), (1, 3)])
@pytest.mark.parametrize("name", ["llama", "gemma3", "mamba2", "lfm2", "lfm2-swa", "qwen35"])
def test_cancelling_a_third_of_64_touches_nobody_else(name: str, seed: int, guesses: int, new_context: Make) -> None:
    ctx, single = new(new_context, name, n_ubatch=32), new(new_context, name, n_seq_max=1)
    rng = random.Random(seed)
    jobs = [(tokens(rng.randint(1, 50), i), rng.randint(1, 24)) for i in range(64)]
    cancelled = set(rng.sample(range(64), 21))

    async def client(engine: Engine, i: int) -> list[int]:
        stream = engine.generate(jobs[i][0], max_tokens=10**6 if i in cancelled else jobs[i][1], sampling=GREEDY)
        async for _ in stream:
            pass
        return stream.tokens

    speculator = Speculator(ctx, NGram(3, 1), n=guesses)

    async def main() -> list[Any]:
        async with Engine(ctx, draft=speculator if guesses else None) as engine:
            tasks = [asyncio.create_task(client(engine, i)) for i in range(64)]
            for i in sorted(cancelled, key=lambda _: rng.random()):
                for _ in range(rng.randint(0, 3)):
                    await asyncio.sleep(rng.random() * 0.002)
                tasks[i].cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            await until_free(ctx, 8)
            return results

    results = run(main)
    for i, result in enumerate(results):
        if i in cancelled:
            assert isinstance(result, asyncio.CancelledError)
        else:
            assert result == alone(single, *jobs[i]), i
    assert Tenancy(ctx).available == 8
    assert lloyal.BranchStore(ctx).kv_pressure.cells_used == 0
    assert (speculator.stats.kept > 0) == (guesses > 0)


def test_text_is_what_one_generation_says(nano: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(nano, n_seq_max=4, **EXACT)
    single = new_context(nano, **EXACT)
    options = {"max_tokens": 30, "stop": "("}

    async def main() -> list[TextStream]:
        async with Engine(ctx) as engine:
            streams = [engine.generate(prompt, sampling=GREEDY, **options) for prompt in ("def ", "class ", "s = 'é")]
            said = await asyncio.gather(*(stream.read() for stream in streams))
            return list(zip(streams, said, strict=True))

    for prompt, (stream, said) in zip(("def ", "class ", "s = 'é"), run(main), strict=True):
        single.memory.clear()
        generation = lloyal.generate(single, prompt, sampling=GREEDY, **options)
        assert said == "".join(generation.text())
        assert stream.tokens == generation.tokens
        assert stream.stop_reason == generation.stop_reason
        assert "over" in repr(stream)


def test_schemas_and_chats(nano: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(nano, n_seq_max=4)
    chat = lloyal.chat.apply_template(nano, [{"role": "user", "content": "a"}])

    async def main() -> None:
        async with Engine(ctx) as engine:
            schema = {"type": "integer", "minimum": 0, "maximum": 99}
            number, said = await asyncio.gather(
                engine.generate("x = ", json_schema=schema, sampling=Sampling(seed=1)).read(),
                engine.generate(chat, max_tokens=5, sampling=GREEDY).read(),
            )
            assert 0 <= json.loads(number) <= 99
            assert isinstance(said, str)

    run(main)


def failing(so_far: Any, logits: Any) -> None:
    if len(so_far) >= 12:
        raise KeyError("mine")


def test_an_error_reaches_one_client(new_context: Make) -> None:
    ctx, single = new(new_context, n_ctx=256), new(new_context, n_seq_max=1)
    prompts = [tokens(8, i) for i in range(4)]

    async def main() -> None:
        async with Engine(ctx) as engine:
            good = [engine.generate(prompt, max_tokens=40, sampling=GREEDY) for prompt in prompts]
            wrong = {
                InvalidGrammar: engine.generate([1], grammar="root ::= ("),
                KeyError: engine.generate(tokens(8), sampling=Sampling(logits_processors=[failing])),
                InvalidArgument: engine.generate([]),
                CacheFull: engine.generate(tokens(400)),
            }
            beyond = engine.generate([10**6])
            results = await asyncio.gather(*(stream.read() for stream in good), return_exceptions=True)
            for error, stream in wrong.items():
                with pytest.raises(error):
                    await stream.read()
                assert [piece async for piece in stream] == []  # raised once; then it is over
            with pytest.raises(LloyalError):
                await beyond.read()
            assert all(isinstance(result, str) for result in results)
            for prompt, stream in zip(prompts, good, strict=True):
                assert stream.tokens == alone(single, prompt, 40)
            for bad in ({"max_tokens": 0}, {"stop": ""}):
                with pytest.raises(InvalidArgument):
                    engine.generate([1], **bad)
            with pytest.raises(TypeError):
                engine.generate([1], sampling=lloyal.Sampler.greedy())
            await until_free(ctx, 8)

    run(main)


def test_a_client_that_goes_frees_its_sequence(new_context: Make) -> None:
    ctx = new(new_context, n_seq_max=2, n_ctx=16384)

    async def main() -> None:
        async with Engine(ctx) as engine:
            for leave in ("break", "aclose", "timeout", "never asked"):
                stream = engine.generate([1, 2], sampling=GREEDY)
                if leave == "never asked":
                    await until_free(ctx, 1)
                elif leave == "timeout":
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.05):
                            await stream.read()
                    assert [piece async for piece in stream] == []
                else:
                    async for _ in stream:
                        break
                if leave == "aclose":
                    await stream.aclose()
                    assert [piece async for piece in stream] == []
                del stream
                gc.collect()
                await until_free(ctx, 2)

    run(main)


def test_closing_ends_everybody_with_a_reason(new_context: Make) -> None:
    ctx = new(new_context, n_ctx=16384)

    async def main() -> None:
        engine = Engine(ctx)
        with pytest.raises(Closed):
            engine.generate([1])
        async with engine:
            streams = [engine.generate(tokens(5, i), sampling=GREEDY) for i in range(5)]
            waits = [asyncio.create_task(stream.read()) for stream in streams]
            await anext(engine.generate([1], max_tokens=1, sampling=GREEDY), None)
            closing = asyncio.create_task(engine.aclose())
            results = await asyncio.gather(*waits, return_exceptions=True)
            await closing
        for result in results:
            assert isinstance(result, Closed)
            assert "engine was closed" in str(result)
        with pytest.raises(Closed):
            engine.generate([1])
        with pytest.raises(Closed):
            async with engine:
                pass

    run(main)
    assert Tenancy(ctx).available == 8
    assert not [thread for thread in threading.enumerate() if thread.name == "lloyal-engine"]


def test_a_context_that_is_closed_under_it(new_context: Make) -> None:
    ctx = new(new_context, n_ctx=16384)

    async def main() -> None:
        async with Engine(ctx) as engine:
            streams = [engine.generate(tokens(5, i), sampling=GREEDY) for i in range(3)]
            await asyncio.gather(*(anext(stream) for stream in streams))
            ctx.close()
            for stream in streams:
                with pytest.raises(Closed):
                    await stream.read()
            with pytest.raises(Closed):
                await engine.generate([1]).read()

    run(main)


def test_the_loop_goes_on_during_a_step(new_context: Make) -> None:
    """Inside of a step the engine's thread waits for the loop: if the loop waited for the step, neither would move."""
    ctx = new(new_context)
    ticked = threading.Event()
    inside = threading.Event()

    def wait_for_loop(so_far: Any, logits: Any) -> None:
        inside.set()
        if not ticked.wait(20):
            raise TimeoutError("the event loop stood still")

    async def main() -> None:
        async with Engine(ctx) as engine:
            task = asyncio.create_task(
                engine.generate([1], max_tokens=3, sampling=Sampling(logits_processors=[wait_for_loop])).read()
            )
            while not inside.is_set():
                await asyncio.sleep(0)
            for _ in range(10):
                other = engine.generate([2], max_tokens=2)
                await asyncio.sleep(0)
                await other.aclose()
            ticked.set()
            await task

    run(main)


def test_a_long_prompt_lets_the_others_go_on(new_context: Make) -> None:
    ctx = new(new_context, n_ubatch=32, n_batch=64)
    scheduler = Scheduler(ctx)
    texts = [
        Text(prompt, lambda prompt=prompt: scheduler.store.create(prompt, sampling=GREEDY, read=False), most, index=i)
        for i, (prompt, most) in enumerate([(tokens(3), 100), (tokens(321, 1), 2)])
    ]
    scheduler.add(texts[0])
    assert [text.index for text in scheduler.step()[0]] == [0]
    scheduler.add(texts[1])
    order = []
    while not texts[1].over:
        order += [text.index for text in scheduler.step()[0]]
    assert order == [0] * 10 + [0, 1, 0, 1]  # eleven parts of at most 32
    scheduler.remove(texts[0])
    assert scheduler.idle
    scheduler.close()
    assert texts[1].tokens == alone(new(new_context), tokens(321, 1), 2)


def test_other_threads_take_their_turn(new_context: Make) -> None:
    """With the lock they wait for a step, not for the text; a bare call makes the engine wait."""
    ctx = new(new_context, n_ctx=16384)
    single = new(new_context)
    stop = threading.Event()
    turns, busy = [0], [0]

    def polite() -> None:
        while not stop.is_set():
            with ctx.lock(timeout=20):
                turns[0] += 1

    def bare() -> None:
        while not stop.is_set():
            try:
                ctx.state_get_size()
            except Busy:
                busy[0] += 1

    async def main() -> list[int]:
        threads = [threading.Thread(target=target) for target in (polite, bare)]
        async with Engine(ctx) as engine:
            endless = engine.generate([5], sampling=GREEDY)
            await anext(endless)
            for thread in threads:
                thread.start()
            stream = engine.generate(tokens(9), max_tokens=60, sampling=GREEDY)
            await stream.read()
            stop.set()
            for thread in threads:
                await asyncio.to_thread(thread.join)
            await endless.aclose()
            return stream.tokens

    assert run(main) == alone(single, tokens(9), 60)
    assert turns[0] > 10
    assert busy[0] > 0


def test_it_says_how_it_is(new_context: Make) -> None:
    assert lloyal.aio.Engine is Engine

    async def main() -> None:
        engine = Engine(new(new_context))
        assert repr(engine) == "<Engine, not entered>"
        async with engine:
            assert repr(engine) == "<Engine, open>"
        assert repr(engine) == "<Engine, closed>"

    run(main)
