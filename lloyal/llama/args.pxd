# Integers that come from Python, checked: one that does not fit is named, where Cython would raise a bare OverflowError,
# and a float is refused, where Cython would cut it off.

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

        raise InvalidArgument(f"{name}={value} is out of range: it must be from {low} to {high}")
    return number


cdef inline int32_t as_int32(object value, str name) except? -1:
    return <int32_t>as_integer(value, name, -0x80000000, 0x7fffffff)


cdef inline uint32_t as_uint32(object value, str name) except? 0xffffffff:
    return <uint32_t>as_integer(value, name, 0, 0xffffffff)


cdef inline double as_number(object value, str name, double low, double high) except? -1:
    # A finite number; NaN fails the comparison.
    cdef double number
    if isinstance(value, (str, bytes)) or not hasattr(type(value), "__float__"):
        raise TypeError(f"{name}={value!r} must be a number")
    number = value
    if not low <= number <= high:
        from lloyal.errors import InvalidArgument

        raise InvalidArgument(f"{name}={value} is out of range: it must be from {low:g} to {high:g}")
    return number
