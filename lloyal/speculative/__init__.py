"""Several tokens a step: a drafter guesses what comes, and the model keeps the guesses that it would pick itself."""

from lloyal.native.step import DraftSampler
from lloyal.speculative.chain import Chain
from lloyal.speculative.forced import Forced
from lloyal.speculative.heads import MTP, DFlash, Eagle3
from lloyal.speculative.loop import Speculator, SpeculatorStats, speculator_for
from lloyal.speculative.model import DraftModel
from lloyal.speculative.ngram import NGram
from lloyal.speculative.protocol import Drafter, Pick
from lloyal.speculative.suffix import Suffix
from lloyal.speculative.synthetic import Synthetic

__all__ = [
    "MTP",
    "Chain",
    "DFlash",
    "DraftModel",
    "DraftSampler",
    "Drafter",
    "Eagle3",
    "Forced",
    "NGram",
    "Pick",
    "Speculator",
    "SpeculatorStats",
    "Suffix",
    "Synthetic",
    "speculator_for",
]
