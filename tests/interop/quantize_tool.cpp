// Quantises what another program sends, for torch_quantize.py: until the input ends, a header of five 64-bit numbers
// (kind: 0 block, 1 channel; type: 0 F32, 1 BF16, 2 F16; rows; columns; kernel, counted from the slowest, or -1 for the
// one that the library takes) and the elements; answers with the scales and the bytes.
#include <array>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "weightcast/device/quantize.hpp"

int main() {
  using namespace weightcast;
  std::array<std::int64_t, 5> header{};
  std::vector<std::byte> elements, fp8;
  std::vector<float> scales;
  while (std::fread(header.data(), sizeof(header), 1, stdin) == 1) {
    const auto kind = header[0] == 0 ? ScaleKind::block : ScaleKind::channel;
    const auto type = static_cast<WideFloat>(header[1]);
    const auto rows = static_cast<std::uint64_t>(header[2]), columns = static_cast<std::uint64_t>(header[3]);
    elements.resize(rows * columns * width_bytes(type));
    fp8.resize(rows * columns);
    scales.resize(scale_rows(kind, rows) * scale_columns(kind, columns));
    if (std::fread(elements.data(), 1, elements.size(), stdin) != elements.size()) return 1;
    const FloatMatrix source{elements.data(), type, rows, columns, columns};
    const Fp8Matrix to{fp8.data(), columns, scales.data(), scale_columns(kind, columns)};
    if (header[4] < 0) {
      quantize(kind, source, to);
    } else {
      const auto kernels = quantize_kernels();
      const auto index = static_cast<std::size_t>(header[4]);
      if (index >= kernels.size() || !kernels[index].usable) return 2;
      kernels[index].run(kind, source, to);
    }
    if (std::fwrite(scales.data(), sizeof(float), scales.size(), stdout) != scales.size() ||
        std::fwrite(fp8.data(), 1, fp8.size(), stdout) != fp8.size() || std::fflush(stdout) != 0)
      return 1;
  }
  return std::ferror(stdin) != 0 ? 1 : 0;
}
