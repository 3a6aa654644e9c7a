# Written by tools/stubs.py from outputs.pyx.
"""Views of a context's outputs, which belong to the context and are overwritten by its next decode."""

from numpy import float32
from numpy.typing import DTypeLike, NDArray
from typing import Any, overload

__all__ = ["Logits"]

class Logits:
    """One row of outputs: a view of float32 values that the context owns.

    Indexing and `argmax` read it in place; it raises `NoLogits` once the context has decoded again. What leaves it as an
    array or a buffer is a copy, made once and shared by all of them, and stays what it is.
    """

    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, index: int) -> float: ...
    @overload
    def __getitem__(self, index: slice) -> NDArray[float32]: ...
    def argmax(self) -> int:
        """Index of the largest value, the first of equals. Releases the GIL."""
    def logprob(self, token: int) -> float:
        """The natural logarithm of a token's probability, by a softmax in float64. Releases the GIL.

        NaN if a value of the row is NaN or +inf, or all are -inf.
        """
    def top(self, n: int) -> list[tuple[float, int]]:
        """The `n` most probable tokens as (log-probability, token), the best first. Releases the GIL.

        Log-probabilities are those of `logprob`.
        """
    def copy(self) -> NDArray[float32]:
        """A NumPy array of its own, float32, shape (n,)."""
    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]: ...
    def __repr__(self) -> str: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
