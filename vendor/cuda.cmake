# Where CUDA comes from. Whatever the caller set (CUDAToolkit_ROOT, CMAKE_CUDA_COMPILER, CMAKE_CUDA_ARCHITECTURES,
# CUDA_cublas_LIBRARY, GGML_CUDA_*) is kept; this file only finds what is missing:
#
# - the toolkit of the nvcc on PATH, which may be a wrapper script;
# - cuBLAS, from the toolkit or from the Python package nvidia-cublas, whose other headers belong to another version of
#   the toolkit: only cublas*.h go on the include path;
# - what ggml cannot ask the driver on a machine that has none.

# The toolkit
if(NOT CUDAToolkit_ROOT AND NOT CMAKE_CUDA_COMPILER)
    find_program(LLOYAL_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin)
    if(NOT LLOYAL_NVCC)
        message(FATAL_ERROR "LLOYAL_CUDA: there is no nvcc on PATH. Install the CUDA toolkit, or set CUDAToolkit_ROOT.")
    endif()
    execute_process(COMMAND ${LLOYAL_NVCC} -v __none__ ERROR_VARIABLE dry_run OUTPUT_QUIET)
    if(dry_run MATCHES "#\\$ TOP=([^\r\n]+)")
        get_filename_component(CUDAToolkit_ROOT "${CMAKE_MATCH_1}" REALPATH)
    else()
        get_filename_component(CUDAToolkit_ROOT "${LLOYAL_NVCC}" REALPATH)
        get_filename_component(CUDAToolkit_ROOT "${CUDAToolkit_ROOT}/../.." ABSOLUTE)
    endif()
endif()
if(CUDAToolkit_ROOT AND NOT CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_COMPILER ${CUDAToolkit_ROOT}/bin/nvcc CACHE FILEPATH "CUDA compiler")
endif()
find_package(CUDAToolkit REQUIRED)

# cuBLAS
if(NOT TARGET CUDA::cublas)
    # An isolated build hides the environment's packages from sys.path; sysconfig still names their folder.
    string(CONCAT find_cublas
        "import pathlib, sys, sysconfig\n"
        "paths = [*sys.path, sysconfig.get_path('platlib'), sysconfig.get_path('purelib')]\n"
        "found = [lib.parent for path in paths for lib in pathlib.Path(path).glob('nvidia/*/lib/libcublas.so.${CUDAToolkit_VERSION_MAJOR}')]\n"
        "print(found[0].parent if found else '', end='')")
    execute_process(COMMAND ${Python_EXECUTABLE} -P -c "${find_cublas}" OUTPUT_VARIABLE cublas COMMAND_ERROR_IS_FATAL ANY)
    if(NOT cublas)
        message(FATAL_ERROR
            "LLOYAL_CUDA: the toolkit at ${CUDAToolkit_ROOT} has no cuBLAS, and neither has ${Python_EXECUTABLE}. "
            "Run: ${Python_EXECUTABLE} -m pip install 'nvidia-cublas==${CUDAToolkit_VERSION_MAJOR}.*'")
    endif()
    foreach(name IN ITEMS cublas cublasLt)
        set(CUDA_${name}_LIBRARY ${cublas}/lib/lib${name}.so.${CUDAToolkit_VERSION_MAJOR} CACHE FILEPATH "" FORCE)
    endforeach()
    file(GLOB headers ${cublas}/include/cublas*.h)
    file(COPY ${headers} DESTINATION ${CMAKE_CURRENT_BINARY_DIR}/cublas)
    include_directories(SYSTEM ${CMAKE_CURRENT_BINARY_DIR}/cublas)
    message(STATUS "LLOYAL_CUDA: cuBLAS from ${cublas}")
endif()

# The driver
execute_process(COMMAND nvidia-smi --list-gpus RESULT_VARIABLE no_driver OUTPUT_VARIABLE gpus ERROR_QUIET)
if(no_driver OR NOT gpus)
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND LLOYAL_NATIVE)
        # "native" asks the driver. 90 is Hopper, with PTX for what comes after it.
        set(CMAKE_CUDA_ARCHITECTURES 90)
        message(STATUS "LLOYAL_CUDA: no GPU to ask, so CMAKE_CUDA_ARCHITECTURES=90; set it for other cards")
    endif()
    if(NOT DEFINED GGML_CUDA_NO_VMM AND NOT TARGET CUDA::cuda_driver)
        set(GGML_CUDA_NO_VMM ON)
        message(STATUS "LLOYAL_CUDA: no libcuda to link, so GGML_CUDA_NO_VMM=ON")
    endif()
elseif(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND LLOYAL_NATIVE)
    set(CMAKE_CUDA_ARCHITECTURES native)
endif()

# The libraries of the toolkit stay out of the wheel: at run time they come from the system or from its Python packages.
set(LLOYAL_CUDA_RPATH "$ORIGIN/../../nvidia/cu${CUDAToolkit_VERSION_MAJOR}/lib")
message(STATUS "LLOYAL_CUDA: toolkit ${CUDAToolkit_VERSION} at ${CUDAToolkit_ROOT}")
