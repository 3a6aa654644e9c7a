"""What ``lloyal bench`` measures and shows, and the method behind every benchmark (`lloyal.bench.timing`)."""

from lloyal.bench.checkpoint import N_MORE, N_TOGETHER, measure_checkpoints
from lloyal.bench.report import (
    READING,
    check_plot,
    checkpoint_table,
    lockstep_line,
    plot_checkpoints,
    plot_widths,
    plotter,
    speculation_table,
    width_table,
)
from lloyal.bench.speculative import WIDTHS, measure_speculation, measure_widths
from lloyal.bench.timing import Side, Timing, alternate, ratio, timed

__all__ = [
    "N_MORE",
    "N_TOGETHER",
    "READING",
    "WIDTHS",
    "Side",
    "Timing",
    "alternate",
    "check_plot",
    "checkpoint_table",
    "lockstep_line",
    "measure_checkpoints",
    "measure_speculation",
    "measure_widths",
    "plot_checkpoints",
    "plot_widths",
    "plotter",
    "ratio",
    "speculation_table",
    "timed",
    "width_table",
]
