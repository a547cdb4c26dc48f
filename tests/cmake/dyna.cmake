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

# Sets DYNA_WITH_CUDA. A machine that compiles needs no GPU. Sanitizers and clang builds do without.
macro(dyna_find_cuda)
  set(DYNA_WITH_CUDA OFF)
  if(DYNA_CUDA STREQUAL "OFF")
    message(STATUS "CUDA backend: off")
  elseif(DYNA_SANITIZE OR NOT CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    message(STATUS "CUDA backend: off (sanitizers, or not GCC)")
  else()
    find_program(DYNA_NVCC nvcc HINTS ENV CUDA_PATH ENV CUDA_HOME PATHS /usr/local/cuda
                 PATH_SUFFIXES bin)
    if(DYNA_NVCC)
      set(DYNA_WITH_CUDA ON)
      set(CMAKE_CUDA_COMPILER ${DYNA_NVCC})
      set(CMAKE_CUDA_ARCHITECTURES ${DYNA_CUDA_ARCHS})
      set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER})
      enable_language(CUDA)
      set(CMAKE_CUDA_STANDARD 20)
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")   # 3.25 does not know it
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
      find_package(CUDAToolkit REQUIRED)
      message(STATUS "CUDA backend: on, for ${DYNA_CUDA_ARCHS}")
    elseif(DYNA_CUDA STREQUAL "ON")
      message(FATAL_ERROR "DYNA_CUDA=ON, and there is no nvcc")
    else()
      message(STATUS "CUDA backend: off (no nvcc)")
    endif()
  endif()
endmacro()

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
