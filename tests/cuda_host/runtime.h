// The few functions of the CUDA runtime that the sources call, on the host: devices with the limits of real
// ones, and a ledger of launches. What a launch asks for is checked against its device before a kernel runs;
// in a dry run nothing runs, so that the choices for large shapes and large devices can be read from the
// ledger.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrComputeCapabilityMajor };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

namespace pfgm::emulate {

/// A device as its multiprocessors and its compute capability say (CUDA C++ programming guide, table of
/// technical specifications).
struct Device {
  int multiprocessors, capability;    // 10 × major + minor
  int64_t taken = 0, most_taken = 0;  // bytes of scratch memory
  int stream = 0;                     // the current one; 0 is the default

  /// Bytes of dynamic shared memory that a block may ask for after cudaFuncSetAttribute; without it, 48 KB.
  size_t shared_limit() const {
    switch (capability) {
      case 80: return 163 * 1024;
      case 86:
      case 89: return 99 * 1024;
      case 90:
      case 100: return 227 * 1024;
      default: throw std::logic_error("the emulator knows no device of this compute capability");
    }
  }
};

/// What cudaStream_t points to: a stream knows its device.
struct StreamOf {
  int device, number;
};

struct Launch {
  std::string kernel;
  int device, stream, threads;
  int64_t blocks;
  size_t shared;
};

/// Runs a launch in another way (tests/ptx), or returns false.
using LaunchHook = bool (*)(const void* kernel, int64_t blocks, int threads, size_t shared,
                            const void* const* parameters, const size_t* sizes, int count);

struct Runtime {
  std::vector<Device> devices{
      Device{3, 90}};  // few multiprocessors, so that small shapes take several waves, and odd
  int current = 0;
  bool dry = false;
  std::vector<Launch> ledger;  // filled in dry runs, and where `recording`
  bool recording = false;
  std::map<std::pair<const void*, int>, size_t> allowed;  // shared memory by kernel and device
  int64_t attribute_calls = 0;
  LaunchHook hook = nullptr;
  std::vector<std::pair<const char*, std::pair<int64_t, int>>>
      owned;  // memory that lies on another device than 0
  std::map<std::pair<int, int>, StreamOf> streams;

  Device& device() { return devices.at(static_cast<size_t>(current)); }
};
inline Runtime& runtime() {
  static Runtime instance;
  return instance;
}

inline int device_of(const void* pointer) {
  for (const auto& [begin, extent] : runtime().owned) {
    const char* at = static_cast<const char*>(pointer);
    if (at >= begin && at < begin + extent.first) return extent.second;
  }
  return 0;
}
inline StreamOf* current_stream(int device) {
  Runtime& all = runtime();
  const int number = all.devices.at(static_cast<size_t>(device)).stream;
  return &all.streams.insert({{device, number}, StreamOf{device, number}}).first->second;
}

/// Fills memory with NaN; large blocks of dry runs are left alone, for nobody touches them.
inline void poison(void* memory, size_t bytes) {
  if (!runtime().dry) std::memset(memory, 0xff, bytes);
}

class DeviceGuard {
 public:
  explicit DeviceGuard(int device) : before_(runtime().current) { runtime().current = device; }
  ~DeviceGuard() { runtime().current = before_; }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_;
};

/// Scratch memory, counted on the device that is current.
inline void count_scratch(int device, int64_t bytes) {
  Device& where = runtime().devices.at(static_cast<size_t>(device));
  where.taken += bytes;
  if (where.taken > where.most_taken) where.most_taken = where.taken;
}

/// What the driver would refuse, or a programmer would regret: raises; then notes the launch.
inline void check_launch(const std::string& name, const void* kernel, int64_t blocks, int threads,
                         size_t shared, const StreamOf* stream) {
  Runtime& all = runtime();
  const auto refuse = [&](const std::string& why) {
    throw std::logic_error("launch of " + name + ": " + why);
  };
  if (blocks < 1 || blocks > 2147483647)
    refuse("a grid has 1 to 2^31 - 1 blocks, not " + std::to_string(blocks));
  if (threads < 1 || threads > 1024 || threads % 32 != 0)
    refuse("a block must have 32 to 1024 threads, not " + std::to_string(threads));
  if (shared > all.device().shared_limit())
    refuse("too much shared memory: " + std::to_string(shared) + " bytes");
  if (shared > 48 * 1024) {
    const auto found = all.allowed.find({kernel, all.current});
    if (found == all.allowed.end() || found->second < shared)
      refuse("more than 48 KB of shared memory without cudaFuncSetAttribute on this device");
  }
  if (stream == nullptr || stream->device != all.current) refuse("the stream is not the current device's");
  if (all.dry || all.recording)
    all.ledger.push_back({name, all.current, stream->number, threads, blocks, shared});
}

}  // namespace pfgm::emulate

using cudaStream_t = pfgm::emulate::StreamOf*;

inline const char* cudaGetErrorString(cudaError_t) { return "invalid value"; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = pfgm::emulate::runtime().current;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  const auto& all = pfgm::emulate::runtime().devices;
  if (device < 0 || device >= static_cast<int>(all.size())) return cudaErrorInvalidValue;
  const auto& found = all[static_cast<size_t>(device)];
  *value = attribute == cudaDevAttrMultiProcessorCount ? found.multiprocessors : found.capability / 10;
  return cudaSuccess;
}
template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int bytes) {
  auto& all = pfgm::emulate::runtime();
  ++all.attribute_calls;
  if (bytes < 0 || static_cast<size_t>(bytes) > all.device().shared_limit()) return cudaErrorInvalidValue;
  all.allowed[{reinterpret_cast<const void*>(kernel), all.current}] = static_cast<size_t>(bytes);
  return cudaSuccess;
}
