# weightcast_test(<name> TIER <label> SOURCES <file>... USES <room>... [LINKS <target>...] [RANKS <n>...] [TIMEOUT <s>]
#                 [FILTER <GoogleTest filter>])
# Builds tests/<tier>/<name> once and registers it with ctest: as it is, or under mpiexec once per rank count.
#
# weightcast_test_runs(<name> TIER <label> RANKS <n>... [TIMEOUT <s>] [FILTER <GoogleTest filter>])
# Registers a program under mpiexec once more: other tests of it, in another tier.
set(WEIGHTCAST_MPI_ENVIRONMENT
    OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
    OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,vader OMPI_MCA_oob_tcp_if_include=lo
    OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_mpi_yield_when_idle=1 GTEST_COLOR=no)

function(weightcast_test name)
  cmake_parse_arguments(PARSE_ARGV 1 TEST "" "TIER;TIMEOUT;FILTER" "SOURCES;USES;LINKS;RANKS")
  if(TEST_UNPARSED_ARGUMENTS OR NOT TEST_TIER)
    message(FATAL_ERROR "weightcast_test(${name}): bad arguments ${TEST_UNPARSED_ARGUMENTS}")
  endif()
  if(NOT TEST_TIMEOUT)
    set(TEST_TIMEOUT 120)
  endif()
  add_executable(${name} ${TEST_SOURCES})
  list(TRANSFORM TEST_USES PREPEND weightcast::)
  target_link_libraries(${name} PRIVATE weightcast_options ${TEST_USES} ${TEST_LINKS})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  target_compile_definitions(${name} PRIVATE WEIGHTCAST_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  if(NOT TEST_RANKS)
    target_link_libraries(${name} PRIVATE GTest::gtest GTest::gmock GTest::gtest_main)
    add_test(NAME ${TEST_TIER}.${name} COMMAND ${name})
    set_tests_properties(${TEST_TIER}.${name} PROPERTIES LABELS ${TEST_TIER} TIMEOUT ${TEST_TIMEOUT})
    return()
  endif()
  target_link_libraries(${name} PRIVATE weightcast_mpi_main)
  weightcast_test_runs(${name} TIER ${TEST_TIER} RANKS ${TEST_RANKS} TIMEOUT ${TEST_TIMEOUT} FILTER ${TEST_FILTER})
endfunction()

function(weightcast_test_runs name)
  cmake_parse_arguments(PARSE_ARGV 1 TEST "" "TIER;TIMEOUT;FILTER" "RANKS")
  if(NOT TEST_TIMEOUT)
    set(TEST_TIMEOUT 120)
  endif()
  if(NOT TEST_FILTER)
    set(TEST_FILTER "*")
  endif()
  math(EXPR limit "${TEST_TIMEOUT} - 5")
  foreach(ranks IN LISTS TEST_RANKS)
    set(test ${TEST_TIER}.${name}.np${ranks})
    add_test(NAME ${test} COMMAND ${MPIEXEC_EXECUTABLE} --oversubscribe --timeout ${limit} -n ${ranks}
      $<TARGET_FILE:${name}> --gtest_filter=${TEST_FILTER})
    set_tests_properties(${test} PROPERTIES LABELS "${TEST_TIER};np${ranks}" TIMEOUT ${TEST_TIMEOUT} PROCESSORS 2
      SKIP_RETURN_CODE 77 ENVIRONMENT "${WEIGHTCAST_MPI_ENVIRONMENT}")
  endforeach()
endfunction()

# weightcast_fuzz(<name> SOURCES <file>... USES <room>... [LINKS <target>...])
# SOURCES define LLVMFuzzerTestOneInput. With WEIGHTCAST_FUZZ (clang) builds the libFuzzer program <name>_fuzz; with
# WEIGHTCAST_TESTS the test fuzz.<name>, which runs every file of tests/fuzz/corpus/<name>/ through the same function.
function(weightcast_fuzz name)
  cmake_parse_arguments(PARSE_ARGV 1 FUZZ "" "" "SOURCES;USES;LINKS")
  if(FUZZ_UNPARSED_ARGUMENTS OR NOT FUZZ_SOURCES)
    message(FATAL_ERROR "weightcast_fuzz(${name}): bad arguments ${FUZZ_UNPARSED_ARGUMENTS}")
  endif()
  list(TRANSFORM FUZZ_USES PREPEND weightcast::)
  if(WEIGHTCAST_FUZZ)
    add_executable(${name}_fuzz ${FUZZ_SOURCES})
    target_link_libraries(${name}_fuzz PRIVATE weightcast_options ${FUZZ_USES} ${FUZZ_LINKS})
    target_link_options(${name}_fuzz PRIVATE -fsanitize=fuzzer)
  endif()
  if(WEIGHTCAST_TESTS)
    add_executable(${name}_replay ${FUZZ_SOURCES} ${PROJECT_SOURCE_DIR}/tests/fuzz/replay_main.cpp)
    target_link_libraries(${name}_replay PRIVATE weightcast_options ${FUZZ_USES} ${FUZZ_LINKS})
    add_test(NAME fuzz.${name} COMMAND ${name}_replay ${PROJECT_SOURCE_DIR}/tests/fuzz/corpus/${name})
    set_tests_properties(fuzz.${name} PROPERTIES LABELS fuzz TIMEOUT 120)
  endif()
endfunction()
