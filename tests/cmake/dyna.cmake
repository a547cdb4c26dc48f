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

# dyna_test(NAME SRCS x_test.cc LIBS dyna_arena): one executable a folder, each case a ctest test.
function(dyna_test name)
  if(NOT DYNA_TESTS)
    return()
  endif()
  cmake_parse_arguments(A "" "" "SRCS;LIBS;LABELS" ${ARGN})
  add_executable(${name} ${A_SRCS})
  target_link_libraries(${name} PRIVATE ${A_LIBS} GTest::gtest_main GTest::gmock dyna_flags)
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES TIMEOUT 600 SKIP_REGULAR_EXPRESSION "\\[  SKIPPED \\] [1-9][0-9]* test.*\\[  PASSED  \\] 0 tests")
  if(A_LABELS)
    set_tests_properties(${name} PROPERTIES LABELS "${A_LABELS}")
  endif()
endfunction()
