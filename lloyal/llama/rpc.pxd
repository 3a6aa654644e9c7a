cimport lloyal._cpp.rpc as r
from lloyal.llama.backend cimport Device

cdef class Connection:
    cdef r.RpcHandle handle

cdef Connection connect_device(Device device)
