# weightcast_test(<name> TIER <label> SOURCES <file>... USES <room>... [LINKS <target>...] [RANKS <n>...] [TIMEOUT <s>])
# Builds tests/<tier>/<name> once and registers it with ctest: as it is, or under mpiexec once per rank count.
set(WEIGHTCAST_MPI_ENVIRONMENT
    OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
    OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,vader OMPI_MCA_oob_tcp_if_include=lo
    OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_mpi_yield_when_idle=1 GTEST_COLOR=no)

function(weightcast_test name)
  cmake_parse_arguments(PARSE_ARGV 1 TEST "" "TIER;TIMEOUT" "SOURCES;USES;LINKS;RANKS")
  if(TEST_UNPARSED_ARGUMENTS OR NOT TEST_TIER)
    message(FATAL_ERROR "weightcast_test(${name}): bad arguments ${TEST_UNPARSED_ARGUMENTS}")
  endif()
  if(NOT TEST_TIMEOUT)
    set(TEST_TIMEOUT 120)
  endif()
  add_executable(${name} ${TEST_SOURCES})
  list(TRANSFORM TEST_USES PREPEND weightcast::)
  target_link_libraries(${name} PRIVATE weightcast_options ${TEST_USES} ${TEST_LINKS})
  target_compile_definitions(${name} PRIVATE WEIGHTCAST_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  if(NOT TEST_RANKS)
    target_link_libraries(${name} PRIVATE GTest::gtest GTest::gmock GTest::gtest_main)
    add_test(NAME ${TEST_TIER}.${name} COMMAND ${name})
    set_tests_properties(${TEST_TIER}.${name} PROPERTIES LABELS ${TEST_TIER} TIMEOUT ${TEST_TIMEOUT})
    return()
  endif()
  target_link_libraries(${name} PRIVATE weightcast_mpi_main)
  math(EXPR limit "${TEST_TIMEOUT} - 5")
  foreach(ranks IN LISTS TEST_RANKS)
    set(test ${TEST_TIER}.${name}.np${ranks})
    add_test(NAME ${test} COMMAND ${MPIEXEC_EXECUTABLE} --oversubscribe --timeout ${limit} -n ${ranks} $<TARGET_FILE:${name}>)
    set_tests_properties(${test} PROPERTIES LABELS "${TEST_TIER};np${ranks}" TIMEOUT ${TEST_TIMEOUT} PROCESSORS 2
      SKIP_RETURN_CODE 77 ENVIRONMENT "${WEIGHTCAST_MPI_ENVIRONMENT}")
  endforeach()
endfunction()
