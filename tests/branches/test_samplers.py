"""The sampler of a branch stands where one stands that is applied and accepted by hand, whatever the branch does."""

from __future__ import annotations

import random

import pytest

from lloyal import BranchStore, Sampling
from lloyal.errors import InvalidArgument

SAMPLINGS = {
    "penalties": {"repeat_penalty": 1.3, "frequency_penalty": 0.3, "presence_penalty": 0.2, "repeat_last_n": 8},
    "dry": {"dry_multiplier": 0.8, "dry_base": 2.0, "dry_allowed_length": 1},
    "xtc": {"xtc_probability": 0.6, "xtc_threshold": 0.05},
    "typical": {"typical_p": 0.6, "top_n_sigma": 2.0},
    "keyed": {"noise": "keyed", "repeat_penalty": 1.3},
    "keyed, all": {"noise": "keyed", "dry_multiplier": 0.5, "xtc_probability": 0.3, "typical_p": 0.8},
    "all": {
        "repeat_penalty": 1.2,
        "dry_multiplier": 0.5,
        "xtc_probability": 0.3,
        "logit_bias": {3: -2.0},
        "top_p": 0.9,
    },
}


@pytest.mark.parametrize("name", SAMPLINGS)
def test_it_stands_where_it_would_by_hand(name: str, store: BranchStore) -> None:
    rng = random.Random(name)
    vocab = store.ctx.vocab
    prompt = vocab.tokenize("def area(x, y):\n    return ")
    sampling = Sampling(temperature=1.2, top_k=20, seed=3, **SAMPLINGS[name])
    branch = store.create(prompt, sampling=sampling)
    chain = sampling.build(vocab, history=prompt)
    fork = branch.fork()
    for i in range(60):
        how = rng.choice(["step", "step", "step", "sample", "commit", "accept", "fork", "refused"])
        if how in ("step", "sample"):
            token = chain.apply(branch.logits).token
            assert (branch.step() if how == "step" else branch.sample()) == token
            if how == "step" and not branch.ended:
                chain.accept(token)
        elif how == "commit":
            branch.commit(5 + i)
            chain.accept(5 + i)
        elif how == "accept":
            branch.accept(7 + i)
            store.decode_each([(branch, 7 + i)])
            chain.accept(7 + i)
        elif how == "fork":
            fork.prune()
            fork = branch.fork()
        elif how == "refused":
            with pytest.raises(InvalidArgument):
                store.step([branch, branch])
        if branch.ended:
            branch.commit(9)
            chain.accept(9)
        assert branch._sampler_state_native() == chain.state(), (i, how)
