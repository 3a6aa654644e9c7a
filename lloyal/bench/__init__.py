"""What ``lloyal bench`` measures and shows, and the method behind every benchmark (`lloyal.bench.timing`)."""

from lloyal.bench.checkpoint import N_MORE, N_TOGETHER, measure_checkpoints
from lloyal.bench.report import READING, check_plot, checkpoint_table, lockstep_line, plot_checkpoints, plotter
from lloyal.bench.timing import Side, Timing, alternate, ratio, timed

__all__ = [
    "N_MORE",
    "N_TOGETHER",
    "READING",
    "Side",
    "Timing",
    "alternate",
    "check_plot",
    "checkpoint_table",
    "lockstep_line",
    "measure_checkpoints",
    "plot_checkpoints",
    "plotter",
    "ratio",
    "timed",
]
