"""Several tokens a step: a drafter guesses what comes, and the model keeps the guesses that it would pick itself."""

from lloyal.speculative.draft import Drafter, DraftModel, NGram
from lloyal.speculative.loop import Speculator, SpeculatorStats

__all__ = ["DraftModel", "Drafter", "NGram", "Speculator", "SpeculatorStats"]
