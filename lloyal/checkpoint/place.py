"""Where a checkpoint is kept if the caller leaves that open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from lloyal.native import checkpoint as native
from lloyal.native.lease import lease_available

if TYPE_CHECKING:
    from lloyal.context import Context

__all__ = ["PLACES", "Place", "choose_place"]

Place = Literal["device", "host", "cells", "auto"]
PLACES: tuple[str, ...] = get_args(Place)


def choose_place(ctx: Context, seq_id: int, partial: bool) -> tuple[str, str]:
    """Where a checkpoint of a sequence is best kept, and why."""
    cost = native.estimate(ctx, seq_id, partial)
    n_bytes, free = cost["copied_bytes"], cost["device_free"]
    why = _why_not_cells(ctx, cost, partial)
    if why is None:
        return "cells", f"sharing {cost['rows']} cells moves no bytes, a copy would move {n_bytes}"
    if n_bytes > free and not cost["is_host"]:
        return "host", f"{n_bytes} bytes do not fit into the {free} free ones of the device; {why}"
    return "device", why


def _why_not_cells(ctx: Context, cost: dict[str, Any], partial: bool) -> str | None:
    """Why a checkpoint should not share cells, or None if it should."""
    kind = ctx.memory.kind
    if partial:
        return "partial: a few rows, copied in microseconds"
    if kind != "attention":
        return f"{kind} memory: a lease would cost a whole recurrent state or window"
    if not ctx.memory.unified:
        return "kv_unified=False: cells cannot be shared"
    free = int(lease_available(ctx))
    if free < 3:
        return f"{free} sequence ids are free, and restores prepare in one of them"
    if 4 * cost["free_cells"] < cost["n_cells"]:
        return f"{cost['free_cells']} of {cost['n_cells']} cells are free, and shared cells stay taken"
    n_bytes, copying, sharing = cost["copied_bytes"], cost["device_seconds"], cost["cells_seconds"]
    budget = ctx.checkpoints.budget
    fits = n_bytes <= cost["device_free"] and (budget is None or ctx.checkpoints.nbytes + n_bytes <= budget)
    if fits and 0 <= copying <= sharing:
        return f"copying {n_bytes} new bytes takes {copying:.1g} s, sharing cells {sharing:.1g} s, measured so far"
    return None
