# Flags, dependencies, and one function: larder_module(name DEPS ...), one target a folder.

find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)
pkg_check_modules(SQLITE3 REQUIRED IMPORTED_TARGET sqlite3)
pkg_check_modules(LIBPQ REQUIRED IMPORTED_TARGET libpq)
pkg_check_modules(LIBMARIADB REQUIRED IMPORTED_TARGET libmariadb)
pkg_check_modules(TOMLPP REQUIRED IMPORTED_TARGET tomlplusplus)
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash)
find_package(OpenSSL REQUIRED)
find_library(BOOST_JSON_LIB NAMES boost_json REQUIRED)
if(LARDER_TESTS)
  find_package(GTest REQUIRED)
endif()

add_library(larder_flags INTERFACE)
target_include_directories(larder_flags INTERFACE ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/include)
target_compile_options(larder_flags INTERFACE
  -Wall -Wextra -Werror -Wthread-safety -Wno-missing-designated-field-initializers -fno-omit-frame-pointer -g1)
target_compile_definitions(larder_flags INTERFACE
  LARDER_VERSION="${PROJECT_VERSION}" BOOST_ASIO_NO_DEPRECATED BOOST_ASIO_SEPARATE_COMPILATION
  BOOST_ASIO_DISABLE_BOOST_COROUTINE BOOST_ERROR_CODE_HEADER_ONLY FMT_HEADER_ONLY=0)
target_link_libraries(larder_flags INTERFACE Threads::Threads fmt::fmt PkgConfig::XXHASH)
target_link_options(larder_flags INTERFACE -fuse-ld=lld -Wl,--gdb-index)

if(LARDER_SANITIZE STREQUAL "address")
  set(san -fsanitize=address,undefined -fno-sanitize-recover=all)
  if(LARDER_FUZZ)
    list(APPEND san -fsanitize=fuzzer-no-link)
  endif()
elseif(LARDER_SANITIZE STREQUAL "thread")
  set(san -fsanitize=thread)
endif()
if(san)
  target_compile_options(larder_flags INTERFACE ${san})
  target_link_options(larder_flags INTERFACE ${san})
endif()

# What computes for long: these modules, and the tests that explore state spaces. With a sanitizer the
# rest is not optimised: it compiles in less than half of the time and mostly waits when it runs.
set(LARDER_HOT "^(larder_(base|wire|policy|near|cache|journal|trace)|(policy|near|journal)_test|sim_.*)$")

# Precompiled headers: the standard library and fmt; for tests GoogleTest as well. One for each way
# of compiling.
set(LARDER_PCH ${PROJECT_SOURCE_DIR}/cmake/pch.h)
function(larder_add_pch name)
  cmake_parse_arguments(ARG "COLD" "" "HEADERS;DEPS" ${ARGN})
  add_library(${name} STATIC ${PROJECT_SOURCE_DIR}/cmake/pch.cc)
  target_link_libraries(${name} PUBLIC larder_flags ${ARG_DEPS})
  target_precompile_headers(${name} PRIVATE ${LARDER_PCH} ${ARG_HEADERS})
  if(ARG_COLD)
    target_compile_options(${name} PRIVATE -O0)
  endif()
endfunction()
larder_add_pch(larder_pch)
if(LARDER_SANITIZE)
  larder_add_pch(larder_cold_pch COLD)
endif()
if(LARDER_TESTS)
  set(gtest HEADERS <gtest/gtest.h> <gmock/gmock.h> DEPS GTest::gtest GTest::gmock)
  larder_add_pch(larder_test_pch ${gtest})
  if(LARDER_SANITIZE)
    larder_add_pch(larder_cold_test_pch COLD ${gtest})
  endif()
endif()

# larder_compile(target [test]): how it is optimised, and which precompiled header it uses.
function(larder_compile target)
  set(kind pch)
  if("test" IN_LIST ARGN)
    set(kind test_pch)
  endif()
  if(LARDER_SANITIZE AND NOT target MATCHES "${LARDER_HOT}")
    target_compile_options(${target} PRIVATE -O0)
    set(kind cold_${kind})
  endif()
  target_precompile_headers(${target} REUSE_FROM larder_${kind})
endfunction()

# larder_module(name DEPS a b): library larder_<name> of src/<name>/**.cc, and, from the *_test.cc that
# stand beside them, the test program <name>_test.
function(larder_module name)
  cmake_parse_arguments(ARG "" "" "DEPS" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/${name}/*.cc)
  set(tests ${sources})
  list(FILTER tests INCLUDE REGEX "_test\\.cc$")
  list(FILTER sources EXCLUDE REGEX "_test\\.cc$")
  list(TRANSFORM ARG_DEPS PREPEND larder_)
  if(sources)
    add_library(larder_${name} STATIC ${sources})
    target_link_libraries(larder_${name} PUBLIC larder_flags ${ARG_DEPS})
    larder_compile(larder_${name})
  else()
    add_library(larder_${name} INTERFACE)
    target_link_libraries(larder_${name} INTERFACE larder_flags ${ARG_DEPS})
  endif()
  if(tests AND LARDER_TESTS)
    larder_test(${name}_test SOURCES ${tests} DEPS larder_${name})
  endif()
endfunction()

# Tests that a sanitizer has nothing to say to, or not in a bearable time: not built for it. One
# thread is all that these modules and the simulations know; the exploration of the engine's protocol
# holds nothing but numbers.
set(LARDER_TESTS_NOT_thread "^((wire|policy|config|crdt|trace)_test|sim_.*|.*differential_test)$")
set(LARDER_TESTS_NOT_address "^sim_engine_protocol_test$")

# larder_test(name SOURCES ... DEPS ...): a GoogleTest program, registered with ctest as one test.
function(larder_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;DEPS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  if(LARDER_SANITIZE AND name MATCHES "${LARDER_TESTS_NOT_${LARDER_SANITIZE}}")
    return()
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} GTest::gtest GTest::gmock GTest::gtest_main)
  larder_compile(${name} test)
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT})
endfunction()
