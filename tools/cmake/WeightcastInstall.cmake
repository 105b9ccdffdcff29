# cmake --install BUILD --prefix DIR --strip stages a tree that can be carried to another machine: bin/weightcast and,
# beside it in lib/, the shared libraries that such a machine is likely to lack. It brings the rest itself: Open MPI 4.1
# (libmpi.so.40), the C and C++ runtime of GCC 12 or later, libcurl.so.4, libcrypto.so.3 and libz.so.1 (parallel HDF5
# wants these three), and for GPUs its own driver.
if(NOT TARGET weightcast)
  return()
endif()
include(GNUInstallDirs)

# DT_RPATH and not DT_RUNPATH: the libraries in lib/ must find each other too, and only DT_RPATH is inherited.
# --as-needed drops what MPI's compiler wrapper names but nobody calls.
target_link_options(weightcast PRIVATE -Wl,--disable-new-dtags -Wl,--as-needed)
set_target_properties(weightcast PROPERTIES INSTALL_RPATH "$ORIGIN/../lib")
install(TARGETS weightcast RUNTIME_DEPENDENCY_SET weightcast_libraries RUNTIME DESTINATION bin)
# For programs in C and Python: the library, include/weightcast/capi/weightcast.h, and the module that finds the library
# from where it is.
set_target_properties(weightcast_capi PROPERTIES INSTALL_RPATH "$ORIGIN")
install(TARGETS weightcast_capi RUNTIME_DEPENDENCY_SET weightcast_libraries LIBRARY DESTINATION lib
        FILE_SET HEADERS DESTINATION include)
install(FILES ${PROJECT_SOURCE_DIR}/tools/python/weightcast.py DESTINATION lib/weightcast/python)
install(RUNTIME_DEPENDENCY_SET weightcast_libraries
  PRE_INCLUDE_REGEXES "^lib(hdf5_openmpi|sz|aec|boost_program_options|fmt|xxhash)\\.so"
  PRE_EXCLUDE_REGEXES ".*"
  LIBRARY DESTINATION lib)

install(FILES ${PROJECT_SOURCE_DIR}/README.md DESTINATION ${CMAKE_INSTALL_DOCDIR} OPTIONAL)
file(GLOB documents CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/lib/weightcast/*/*.md)
foreach(document IN LISTS documents)
  cmake_path(GET document PARENT_PATH room)
  cmake_path(GET room FILENAME room)
  cmake_path(GET document FILENAME file)
  install(FILES ${document} DESTINATION ${CMAKE_INSTALL_DOCDIR} RENAME ${room}-${file})
endforeach()
