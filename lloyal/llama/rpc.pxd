cimport lloyal._cpp.model as cmodel
from lloyal.llama.backend cimport Device

cdef class Connection:
    cdef cmodel.RpcHandle handle

cdef Connection connect_device(Device device)
