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
# For programs in C and Python: the library, include/weightcast/capi/weightcast.h, and the package that finds the library
# from where it is.
set_target_properties(weightcast_capi PROPERTIES INSTALL_RPATH "$ORIGIN")
set_target_properties(weightcast_capi PROPERTIES EXPORT_NAME capi)
install(TARGETS weightcast_capi EXPORT weightcast_c RUNTIME_DEPENDENCY_SET weightcast_libraries LIBRARY DESTINATION lib
        FILE_SET HEADERS DESTINATION include)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/tools/python/weightcast DESTINATION lib/weightcast/python
        FILES_MATCHING PATTERN *.py PATTERN py.typed PATTERN __pycache__ EXCLUDE)
install(RUNTIME_DEPENDENCY_SET weightcast_libraries
  PRE_INCLUDE_REGEXES "^lib(hdf5_openmpi|sz|aec|boost_program_options|fmt|xxhash)\\.so"
  PRE_EXCLUDE_REGEXES ".*"
  LIBRARY DESTINATION lib)

# For programs in C++: the rooms as static libraries, and find_package(weightcast) with the components c, cxx and cuda.
get_property(rooms GLOBAL PROPERTY WEIGHTCAST_ROOMS)
foreach(room IN LISTS rooms)
  set_target_properties(weightcast_${room} PROPERTIES EXPORT_NAME ${room})
  install(TARGETS weightcast_${room} EXPORT weightcast_cxx ARCHIVE DESTINATION lib/weightcast FILE_SET HEADERS DESTINATION include)
endforeach()
include(CMakePackageConfigHelpers)
set(package lib/cmake/weightcast)
foreach(component IN ITEMS c cxx)
  install(EXPORT weightcast_${component} NAMESPACE weightcast:: FILE weightcast-${component}.cmake DESTINATION ${package})
endforeach()
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/weightcastConfig.cmake.in ${PROJECT_BINARY_DIR}/weightcastConfig.cmake
                              INSTALL_DESTINATION ${package} NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/weightcastConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/weightcastConfig.cmake ${PROJECT_BINARY_DIR}/weightcastConfigVersion.cmake
              ${CMAKE_CURRENT_LIST_DIR}/FindNCCL.cmake DESTINATION ${package})

# For shells: module file, completion, man pages (where help2man is installed), batch scripts.
configure_file(${CMAKE_CURRENT_LIST_DIR}/modulefile.in ${PROJECT_BINARY_DIR}/modulefile @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/modulefile DESTINATION share/modulefiles/weightcast RENAME ${PROJECT_VERSION})
install(FILES ${PROJECT_SOURCE_DIR}/tools/completion.bash DESTINATION share/bash-completion/completions RENAME weightcast)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/jobs DESTINATION share/weightcast
        FILES_MATCHING PATTERN *.sbatch PATTERN job.sh PATTERN *.md PATTERN results EXCLUDE PATTERN container EXCLUDE)
find_program(HELP2MAN help2man)
if(HELP2MAN)
  set(pages)
  foreach(command IN ITEMS "" update bench plan verify snapshot inspect synth)
    string(JOIN - name weightcast ${command})
    string(STRIP "${command} --help" help)
    set(page ${PROJECT_BINARY_DIR}/man/${name}.1)
    add_custom_command(OUTPUT ${page} DEPENDS weightcast VERBATIM
      COMMAND ${HELP2MAN} --no-info --name "weight updates from a trainer to inference engines" --version-string ${PROJECT_VERSION}
              --help-option ${help} --output ${page} $<TARGET_FILE:weightcast>)
    list(APPEND pages ${page})
  endforeach()
  add_custom_target(weightcast_man ALL DEPENDS ${pages})
  install(DIRECTORY ${PROJECT_BINARY_DIR}/man/ DESTINATION share/man/man1 FILES_MATCHING PATTERN *.1)
endif()

install(FILES ${PROJECT_SOURCE_DIR}/README.md DESTINATION ${CMAKE_INSTALL_DOCDIR} OPTIONAL)
file(GLOB documents CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/lib/weightcast/*/*.md)
foreach(document IN LISTS documents)
  cmake_path(GET document PARENT_PATH room)
  cmake_path(GET room FILENAME room)
  cmake_path(GET document FILENAME file)
  install(FILES ${document} DESTINATION ${CMAKE_INSTALL_DOCDIR} RENAME ${room}-${file})
endforeach()
install(FILES ${PROJECT_SOURCE_DIR}/lib/weightcast/telemetry/report.schema.json DESTINATION share/weightcast)
