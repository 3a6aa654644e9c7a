"""Several tokens a step: a drafter guesses what comes, and the model keeps the guesses that it would pick itself."""

from lloyal.speculative.loop import Speculator, SpeculatorStats
from lloyal.speculative.model import DraftModel
from lloyal.speculative.ngram import NGram
from lloyal.speculative.protocol import Drafter

__all__ = ["DraftModel", "Drafter", "NGram", "Speculator", "SpeculatorStats"]
