# Arguments that come from Python, converted once and then checked: the conversion may run code of the caller's, and an
# object may answer a comparison one way and its conversion another. What is out of range is named, where Cython would raise
# a bare OverflowError; a float is refused, where Cython would cut it off.

from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t, uint32_t

cdef extern from "Python.h":
    object PyNumber_Index(object)
    long long PyLong_AsLongLongAndOverflow(object, int*) except? -1


cdef inline int64_t as_integer(object value, str name, int64_t low, int64_t high) except? -1:
    cdef int overflow = 0
    cdef int64_t number
    try:
        number = PyLong_AsLongLongAndOverflow(PyNumber_Index(value), &overflow)
    except TypeError:
        raise TypeError(f"{name}={value!r} must be an integer") from None
    if overflow or number < low or number > high:
        from lloyal.errors import InvalidArgument

        shown = number if not overflow else "an integer past 64 bits"
        raise InvalidArgument(f"{name}={shown} is out of range: it must be from {low} to {high}")
    return number


cdef inline int32_t as_int32(object value, str name) except? -1:
    return <int32_t>as_integer(value, name, -0x80000000, 0x7fffffff)


cdef inline uint32_t as_uint32(object value, str name) except? 0xffffffff:
    return <uint32_t>as_integer(value, name, 0, 0xffffffff)


cdef inline size_t as_index(object value, size_t size) except? 0:
    # An index as Python's sequences take it: negative ones count from the end.
    cdef int overflow = 0
    cdef int64_t number = PyLong_AsLongLongAndOverflow(PyNumber_Index(value), &overflow)
    if not overflow and number < 0:
        number += <int64_t>size
    if overflow or number < 0 or number >= <int64_t>size:
        raise IndexError(f"index out of range: there are {size}")
    return <size_t>number


cdef inline double as_double(object value, str name) except? -1:
    cdef double number
    if isinstance(value, (str, bytes)) or not hasattr(type(value), "__float__"):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    try:
        number = value
    except OverflowError:  # an integer that no double holds
        number = INFINITY
    return number


cdef inline double as_number(object value, str name, double low, double high) except? -1:
    # A finite number; NaN fails the comparison.
    cdef double number = as_double(value, name)
    if not low <= number <= high:
        from lloyal.errors import InvalidArgument

        raise InvalidArgument(f"{name}={number:g} is out of range: it must be from {low:g} to {high:g}")
    return number
