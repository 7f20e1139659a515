// What tests may ask of the emulated library (tests/cuda_tools.py calls it through ctypes): its devices, dry
// runs, the ledger.
#include <sstream>

#include "runtime.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

using pfgm::emulate::runtime;

/// The devices from now on; the first is current, all have their default stream.
EXPORTED void emulator_devices(int count, const int* multiprocessors, const int* capability) {
  auto& all = runtime();
  all.devices.clear();
  for (int i = 0; i < count; ++i) all.devices.push_back({multiprocessors[i], capability[i]});
  all.current = 0;
}
EXPORTED void emulator_record(int recording, int dry) {
  runtime().recording = recording != 0;
  runtime().dry = dry != 0;
  runtime().ledger.clear();
}
EXPORTED void emulator_hook(pfgm::emulate::LaunchHook hook) { runtime().hook = hook; }
EXPORTED void emulator_stream(int device, int number) {
  runtime().devices.at(static_cast<size_t>(device)).stream = number;
}
EXPORTED void emulator_current(int device) { runtime().current = device; }
EXPORTED int emulator_current_now() { return runtime().current; }
EXPORTED void emulator_own(const char* begin, int64_t bytes, int device) {
  runtime().owned.push_back({begin, {bytes, device}});
}
EXPORTED void emulator_disown() { runtime().owned.clear(); }
EXPORTED int64_t emulator_attribute_calls() { return runtime().attribute_calls; }
EXPORTED int64_t emulator_scratch(int device, int most) {
  const auto& found = runtime().devices.at(static_cast<size_t>(device));
  return most ? found.most_taken : found.taken;
}
/// A line a launch: kernel, device, stream, blocks, threads, bytes of shared memory, tabs between.
EXPORTED const char* emulator_ledger() {
  static std::string text;
  std::ostringstream lines;
  for (const auto& launch : runtime().ledger)
    lines << launch.kernel << '\t' << launch.device << '\t' << launch.stream << '\t' << launch.blocks << '\t'
          << launch.threads << '\t' << launch.shared << '\n';
  text = lines.str();
  return text.c_str();
}
