# One target per room of lib/weightcast, and the rules that all targets share.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
# The rooms also go into libweightcast.so, which shows nothing but its C functions.
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()

# The old C++ bindings of MPI are not used, and many machines no longer have their library.
set(MPI_CXX_SKIP_MPICXX ON)

find_package(fmt REQUIRED)
find_package(Threads REQUIRED)

add_library(weightcast_options INTERFACE)
target_compile_options(weightcast_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual -Wconversion>
  $<$<AND:$<BOOL:${WEIGHTCAST_WERROR}>,$<COMPILE_LANGUAGE:CXX>>:-Werror>)

# weightcast_room(<name> [SHARED] USES <room>... LINKS <target>... PRIVATE_LINKS <target>... CUDA_LINKS <target>...)
# A static library from lib/weightcast/<name>/*.cpp and, where there are, backend_cuda or backend_none in it. USES are
# exactly the rooms that its files include: tools/check_layers.py holds the includes against these lines. SHARED: a shared library with the rooms that it
# uses inside, for programs that are not C++: they see weightcast/<name>/*.h and the functions WC_API of it.
function(weightcast_room name)
  cmake_parse_arguments(PARSE_ARGV 1 ROOM "SHARED" "" "USES;LINKS;PRIVATE_LINKS;CUDA_LINKS")
  if(ROOM_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "weightcast_room(${name}): unknown arguments ${ROOM_UNPARSED_ARGUMENTS}")
  endif()
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/weightcast/${name}/*.cpp)
  file(GLOB headers CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/weightcast/${name}/*.hpp)
  if(ROOM_SHARED)
    file(GLOB headers CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/weightcast/${name}/*.h)
  endif()
  if(WEIGHTCAST_HAVE_CUDA)
    file(GLOB backend CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/weightcast/${name}/backend_cuda/*.c[pu]*)
    list(APPEND ROOM_PRIVATE_LINKS ${ROOM_CUDA_LINKS})
  else()
    file(GLOB backend CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/weightcast/${name}/backend_none/*.cpp)
  endif()
  list(APPEND sources ${backend})
  if(NOT sources)  # headers only
    add_library(weightcast_${name} INTERFACE)
    add_library(weightcast::${name} ALIAS weightcast_${name})
    target_sources(weightcast_${name} INTERFACE FILE_SET HEADERS BASE_DIRS ${CMAKE_CURRENT_SOURCE_DIR} FILES ${headers})
    list(TRANSFORM ROOM_USES PREPEND weightcast::)
    target_link_libraries(weightcast_${name} INTERFACE ${ROOM_USES} ${ROOM_LINKS})
    set_property(GLOBAL APPEND PROPERTY WEIGHTCAST_ROOMS ${name})
    return()
  endif()
  set(kind STATIC)
  set(scope PUBLIC)
  if(ROOM_SHARED)
    set(kind SHARED)
    set(scope PRIVATE)
  endif()
  add_library(weightcast_${name} ${kind} ${sources})
  add_library(weightcast::${name} ALIAS weightcast_${name})
  target_sources(weightcast_${name} PUBLIC FILE_SET HEADERS BASE_DIRS ${CMAKE_CURRENT_SOURCE_DIR} FILES ${headers})
  list(TRANSFORM ROOM_USES PREPEND weightcast::)
  target_link_libraries(weightcast_${name} ${scope} ${ROOM_USES} ${ROOM_LINKS} PRIVATE $<BUILD_INTERFACE:weightcast_options> ${ROOM_PRIVATE_LINKS})
  target_compile_features(weightcast_${name} ${scope} cxx_std_20)
  if(NOT ROOM_SHARED)
    set_property(GLOBAL APPEND PROPERTY WEIGHTCAST_ROOMS ${name})
  endif()
endfunction()
