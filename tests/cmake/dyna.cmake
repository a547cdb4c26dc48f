# Flags and small functions that every folder's CMakeLists.txt uses.

add_library(dyna_flags INTERFACE)
target_compile_options(dyna_flags INTERFACE -Wall -Wextra -Wshadow -Werror
  # The quantiser is bit-exact on every backend (formats 2): nobody may fuse or reorder floats.
  -ffp-contract=off -fno-fast-math)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # Boost 1.74 under GCC 12, and GCC's own false positives in -O2 inlining.
  target_compile_options(dyna_flags INTERFACE -Wno-maybe-uninitialized -Wno-tsan)
endif()
if(DYNA_SANITIZE)
  add_compile_options(-fsanitize=${DYNA_SANITIZE} -fno-omit-frame-pointer -g1)
  add_link_options(-fsanitize=${DYNA_SANITIZE})
  if(DYNA_SANITIZE MATCHES undefined)
    add_compile_options(-fno-sanitize-recover=undefined)
  endif()
endif()

# dyna_library(NAME SRCS a.cc b.cc DEPS dyna_schemas spdlog::spdlog)
function(dyna_library name)
  cmake_parse_arguments(A "" "" "SRCS;DEPS" ${ARGN})
  add_library(${name} STATIC ${A_SRCS})
  target_link_libraries(${name} PUBLIC ${A_DEPS} PRIVATE dyna_flags)
endfunction()

# What the sanitizer and fuzz stages of tests/run build: nothing else is compiled there.
add_custom_target(dyna_asan_tests)
add_custom_target(dyna_tsan_tests)
add_custom_target(dyna_fuzzers)
# Folders whose unit tests also run under ASan and UBSan: arithmetic, bookkeeping and every door.
set(DYNA_ASAN_FOLDERS schemas kernels kernels/cpu client/base client/transport daemon/arena
    daemon/policy daemon/policy/basis daemon/tier daemon/store daemon/config daemon/admin)

# dyna_test(NAME SRCS x_test.cc LIBS dyna_arena [LABELS tsan]): one executable a folder, one ctest
# test. Labels: the folder is one by itself; `e2e` starts processes and runs alone; `tsan` and
# `asan` also run in those stages; `long` only in tests/run --long.
function(dyna_test name)
  if(NOT DYNA_TESTS)
    return()
  endif()
  cmake_parse_arguments(A "" "" "SRCS;LIBS;LABELS" ${ARGN})
  add_executable(${name} ${A_SRCS})
  target_link_libraries(${name} PRIVATE ${A_LIBS} GTest::gtest_main GTest::gmock dyna_flags)
  add_test(NAME ${name} COMMAND ${name})
  file(RELATIVE_PATH folder ${PROJECT_SOURCE_DIR} ${CMAKE_CURRENT_SOURCE_DIR})
  list(APPEND A_LABELS ${folder})
  if(folder IN_LIST DYNA_ASAN_FOLDERS)
    list(APPEND A_LABELS asan)
  endif()
  foreach(sanitizer asan tsan)
    if(sanitizer IN_LIST A_LABELS)
      add_dependencies(dyna_${sanitizer}_tests ${name})
    endif()
  endforeach()
  set_tests_properties(${name} PROPERTIES TIMEOUT 600 LABELS "${A_LABELS}"
    SKIP_REGULAR_EXPRESSION "\\[  SKIPPED \\] [1-9][0-9]* test.*\\[  PASSED  \\] 0 tests")
  if("e2e" IN_LIST A_LABELS)
    set_tests_properties(${name} PROPERTIES RUN_SERIAL ON)
  endif()
endfunction()

# dyna_fuzz(frame SRCS frame_fuzz.cc LIBS dyna_transport): bin/fuzz_frame, which starts from the
# committed inputs in corpus/frame.
function(dyna_fuzz name)
  if(NOT DYNA_FUZZ)
    return()
  endif()
  cmake_parse_arguments(A "" "" "SRCS;LIBS" ${ARGN})
  add_executable(fuzz_${name} ${A_SRCS})
  target_link_libraries(fuzz_${name} PRIVATE ${A_LIBS} dyna_flags -fsanitize=fuzzer)
  add_dependencies(dyna_fuzzers fuzz_${name})
endfunction()
