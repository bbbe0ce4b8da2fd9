# liblarder_near.so: what other processes link to read the near tier (include/larder/near.h). A build
# of its own of the few files that it takes, so that it needs the C library and nothing else: the
# C++ library is inside, whole-program optimisation drops what is not used of them, and
# nothing but larder_near_* is visible. Never sanitised: it is loaded into programs that are not.
set(near_reader_sources near/near_c near/attachment near/reader near/hits near/arena_layout
  policy/freshness base/hash)
list(TRANSFORM near_reader_sources PREPEND ${PROJECT_SOURCE_DIR}/src/)
list(TRANSFORM near_reader_sources APPEND .cc)
set(near_reader_exports ${PROJECT_SOURCE_DIR}/src/near/near_c.map)

add_library(larder_near_reader SHARED ${near_reader_sources})
set_target_properties(larder_near_reader PROPERTIES
  OUTPUT_NAME larder_near
  LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}
  CXX_VISIBILITY_PRESET hidden
  VISIBILITY_INLINES_HIDDEN ON
  LINK_DEPENDS ${near_reader_exports})
target_include_directories(larder_near_reader
  PRIVATE ${PROJECT_SOURCE_DIR}/src PUBLIC ${PROJECT_SOURCE_DIR}/include)
target_compile_definitions(larder_near_reader PRIVATE
  LARDER_VERSION="${PROJECT_VERSION}")
target_compile_options(larder_near_reader PRIVATE -Wall -Wextra -Werror -Wthread-safety
  -Wno-missing-designated-field-initializers -O2 -g1 -flto -ffunction-sections -fdata-sections)
target_link_libraries(larder_near_reader PRIVATE PkgConfig::XXHASH)
target_link_options(larder_near_reader PRIVATE -fuse-ld=lld -flto -O2 -static-libstdc++
  -static-libgcc -Wl,--exclude-libs,ALL -Wl,--gc-sections -Wl,--as-needed -Wl,-z,defs
  -Wl,--version-script=${near_reader_exports})
