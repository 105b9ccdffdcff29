# Sets WEIGHTCAST_HAVE_CUDA: whether rooms get their backend_cuda or their backend_none.
set(WEIGHTCAST_HAVE_CUDA OFF)
if(WEIGHTCAST_CUDA STREQUAL "OFF")
  return()
endif()

include(CheckLanguage)
check_language(CUDA)
find_package(CUDAToolkit 13.0 QUIET)
find_package(NCCL 2.18 QUIET)
if(CMAKE_CUDA_COMPILER AND CUDAToolkit_FOUND AND NCCL_FOUND)
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100-real 100-virtual)
  endif()
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)  # travels best
  enable_language(CUDA)
  if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that CUDA 13 can
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
  endif()
  set(CMAKE_CUDA_STANDARD 20)
  set(WEIGHTCAST_HAVE_CUDA ON)
elseif(WEIGHTCAST_CUDA STREQUAL "ON")
  message(FATAL_ERROR "WEIGHTCAST_CUDA is ON, but nvcc, the CUDA Toolkit 13 or NCCL 2.18 is missing "
                      "(nvcc: ${CMAKE_CUDA_COMPILER}, toolkit: ${CUDAToolkit_VERSION}, NCCL: ${NCCL_VERSION})")
endif()
message(STATUS "GPUs: ${WEIGHTCAST_HAVE_CUDA}")
