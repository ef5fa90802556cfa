#pragma once

#include <cstdint>

/// The part of the DLPack ABI (v0 and v1) that the reader uses, declared here so that no header
/// package is needed. The major version of a versioned capsule is checked at run time.
namespace dlpack {

enum device_type : std::int32_t { cpu = 1, cuda = 2, cuda_host = 3, cuda_managed = 13 };
enum type_code : std::uint8_t { code_int = 0, code_uint = 1, code_float = 2, code_bfloat = 4 };
constexpr std::uint64_t flag_read_only = 1;

struct device {
  std::int32_t type;
  std::int32_t id;
};
struct data_type {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};
struct tensor {
  void* data;
  dlpack::device device;
  std::int32_t ndim;
  data_type dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // elements; null: C order
  std::uint64_t byte_offset;
};
struct managed {
  dlpack::tensor tensor;
  void* manager;
  void (*deleter)(managed*);
};
struct managed_versioned {
  std::uint32_t major, minor;
  void* manager;
  void (*deleter)(managed_versioned*);
  std::uint64_t flags;
  dlpack::tensor tensor;
};

}  // namespace dlpack
