# One target per room of lib/weightcast, and the rules that all targets share.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
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

# weightcast_room(<name> USES <room>... LINKS <target>... PRIVATE_LINKS <target>... CUDA_LINKS <target>...)
# A static library from lib/weightcast/<name>/*.cpp and, where there are, backend_cuda or backend_none in it. Includes may only point to itself and to the rooms that USES
# reaches: tools/check_layers.py holds the includes against these lines.
function(weightcast_room name)
  cmake_parse_arguments(PARSE_ARGV 1 ROOM "" "" "USES;LINKS;PRIVATE_LINKS;CUDA_LINKS")
  if(ROOM_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "weightcast_room(${name}): unknown arguments ${ROOM_UNPARSED_ARGUMENTS}")
  endif()
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/weightcast/${name}/*.cpp)
  file(GLOB headers CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/weightcast/${name}/*.hpp)
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
    target_include_directories(weightcast_${name} INTERFACE ${CMAKE_CURRENT_SOURCE_DIR})
    list(TRANSFORM ROOM_USES PREPEND weightcast::)
    target_link_libraries(weightcast_${name} INTERFACE ${ROOM_USES} ${ROOM_LINKS})
    return()
  endif()
  add_library(weightcast_${name} STATIC ${sources})
  add_library(weightcast::${name} ALIAS weightcast_${name})
  target_sources(weightcast_${name} PUBLIC FILE_SET HEADERS BASE_DIRS ${CMAKE_CURRENT_SOURCE_DIR} FILES ${headers})
  list(TRANSFORM ROOM_USES PREPEND weightcast::)
  target_link_libraries(weightcast_${name} PUBLIC ${ROOM_USES} ${ROOM_LINKS} PRIVATE weightcast_options ${ROOM_PRIVATE_LINKS})
endfunction()
