"""Branches: texts that are generated side by side in one context, and the store that steps them together."""

from __future__ import annotations

from lloyal.branch.branch import Branch
from lloyal.branch.checkpoint import BranchCheckpoint
from lloyal.branch.search import Beam, beam_search
from lloyal.branch.store import BranchStore

__all__ = ["Beam", "Branch", "BranchCheckpoint", "BranchStore", "beam_search"]
