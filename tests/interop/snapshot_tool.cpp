#include <cstdio>
#include <cstdlib>

#include "weightcast/snapshot/snapshot.hpp"

/// Writes a snapshot whose bytes snapshot_interop.py knows: snapshot_tool FILE.h5 VERSION SEED. Byte i of parameter p
/// is (seed + 17 p + 131 i + i div 256) mod 256.
/// With a fourth argument BASE.h5 it is a delta against that, of bytes that delta_interop.py knows: those of seed 0,
/// but for SEED added where SEED divides (7 i + p) div 16.
int main(int argc, char** argv) {
  using namespace weightcast;
  if (argc != 4 && argc != 5) return 64;
  Model model = build_model(load_model_config("tiny"));
  for (const DType dtype : {DType::BF16, DType::F16, DType::F32, DType::F64, DType::I8, DType::U8, DType::I16,
                            DType::U16, DType::I32, DType::U32, DType::I64, DType::U64, DType::BOOL, DType::F8_E4M3}) {
    ParameterRule rule;
    rule.info = {fmt::format("extra.{}", name(dtype)), dtype, {3, 5, 7}};
    model.parameters.push_back(rule);
  }
  ParameterRule scalar, empty;
  scalar.info = {"extra.scalar", DType::F32, {}};
  empty.info = {"extra.empty", DType::BF16, {0, 4}};
  model.parameters.push_back(scalar);
  model.parameters.push_back(empty);
  const auto seed = std::strtoull(argv[3], nullptr, 10);
  const auto content = [&](std::size_t p, std::uint64_t offset, std::span<std::byte> destination) {
    for (std::size_t i = 0; i < destination.size(); ++i) {
      const bool added = argc == 4 || (7 * (offset + i) + p) / 16 % seed == 0;
      destination[i] = static_cast<std::byte>((added ? seed : 0) + 17 * p + 131 * (offset + i) + (offset + i) / 256);
    }
  };
  try {
    const SnapshotInfo info{.version = std::strtoull(argv[2], nullptr, 10), .digests = {}, .settings = {{"tool", "x"}}};
    if (argc == 4) {
      write_snapshot(std::string(argv[1]), model, content, info);
    } else {
      write_delta_snapshot(std::string(argv[1]), Snapshot::open(argv[4]), model, "the tool's bytes", content, info);
    }
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return static_cast<int>(error.code());
  }
  for (const ParameterRule& rule : model.parameters) std::printf("%s\n", rule.info.name.c_str());
  return 0;
}
