#include "weightcast/core/foreign.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <functional>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"

namespace weightcast {
namespace {

constexpr std::string_view download_again =
                               "download it again, logged in if the repository asks for it (hf auth login)",
                           unpack = "unpack it, and name the folder with the safetensors files",
                           save_pretrained =
                               "convert it in Python: AutoModelForCausalLM.from_pretrained(FOLDER, "
                               "torch_dtype=\"auto\").save_pretrained(NEW), and name NEW";

// Weights in other formats, by content and by the names in a folder.
constexpr Foreign pickle{"a PyTorch checkpoint (a pickle)", save_pretrained},
    gguf{"a GGUF file",
         "get the safetensors that it was made of, or convert it in Python: AutoModelForCausalLM.from_pretrained("
         "FOLDER, gguf_file=FILE).save_pretrained(NEW)"},
    flax{"a Flax checkpoint",
         "convert it in Python, with transformers 4: AutoModelForCausalLM.from_pretrained(FOLDER, from_flax=True)"
         ".save_pretrained(NEW)"},
    keras{"a TensorFlow or Keras checkpoint",
          "convert it in Python, with transformers 4: AutoModelForCausalLM.from_pretrained(FOLDER, from_tf=True)"
          ".save_pretrained(NEW)"},
    numpy{"arrays of numpy", "write them as safetensors: safetensors.numpy.save_file()"},
    onnx{"an ONNX model", "get the safetensors that it was made of: a graph does not keep all names"},
    orbax{"a checkpoint of Orbax (JAX)", "write its arrays as safetensors, under their Hugging Face names"},
    archive{"an archive", unpack},
    meta{"a checkpoint in Meta's format",
         "convert it: python -m transformers.models.llama.convert_llama_weights_to_hf --input_dir FOLDER "
         "--model_size 8B --output_dir NEW"},
    dcp{"a distributed checkpoint of PyTorch",
        "merge it: accelerate merge-weights FOLDER NEW, and put the model's config.json there"},
    deepspeed{"a checkpoint of DeepSpeed",
              "merge it: python zero_to_fp32.py . NEW --safe_serialization, and put the model's config.json there"},
    megatron{"a checkpoint of Megatron",
             "export it to Hugging Face's format, with AutoBridge.export_ckpt() of Megatron Bridge"};

struct Mark {
  std::string_view start;
  Foreign what;
};

constexpr std::array marks{
    Mark{"GGUF", gguf},
    Mark{"\x89HDF\r\n", {"an HDF5 file", "name a checkpoint; of snapshots, verify and inspect take the path"}},
    Mark{"\x93NUMPY", numpy},
    Mark{"\x1f\x8b", archive},
    Mark{"BZh", archive},
    Mark{"\xfd\x37zXZ", archive},
    Mark{"\x28\xb5\x2f\xfd", archive},
    Mark{"7z\xbc\xaf", archive},
    Mark{"Rar!", archive},
};

// In small letters, behind white space.
constexpr std::array text_marks{
    Mark{"version https://git-lfs", {"a Git LFS pointer and not the file itself", "fetch the files: git lfs pull"}},
    Mark{"<!doctype html", {"a web page", download_again}},
    Mark{"<html", {"a web page", download_again}},
    Mark{"<?xml", {"an XML answer of a server", download_again}},
    Mark{"invalid username or password", {"an answer of a server that wanted a login", download_again}},
    Mark{"access to model ", {"an answer of a server that wanted a login", download_again}},
    Mark{"{\"error\"", {"an answer of a server that refused", download_again}},
    Mark{"entry not found",
         {"an answer of a server that did not find the file", "check the name of the repository and of the file"}},
};

unsigned byte_at(std::string_view text, std::size_t index) noexcept {
  return index < text.size() ? static_cast<unsigned char>(text[index]) : 0;
}

bool plain(std::string_view text) noexcept {
  return !text.empty() && std::ranges::all_of(text, [](unsigned char c) { return c >= 0x20 && c < 0x7f; });
}

/// Of a zip archive the name of its first file tells who has written it.
std::optional<Foreign> zip_content(std::string_view start) {
  if (!start.starts_with("PK\x03\x04")) return std::nullopt;
  constexpr std::size_t name_at = 30;
  const auto name = start.size() > name_at ? start.substr(name_at, byte_at(start, 26)) : std::string_view();
  if (name.ends_with(".npy")) return numpy;
  for (const std::string_view entry : {"/data.pkl", "/version", "/byteorder", "/.format_version"}) {
    if (name.ends_with(entry)) return pickle;
  }
  return archive;
}

/// Formats that begin with a field and a short name: of the producer in ONNX, of the first parameters in msgpack.
std::optional<Foreign> named_content(std::string_view start) {
  const auto first = byte_at(start, 0), second = byte_at(start, 1);
  if (first == 0x80 && second >= 2 && second <= 5) return pickle;
  if (first == 0x08 && second > 0 && second < 0x20 && byte_at(start, 2) == 0x12 &&
      plain(start.substr(std::min<std::size_t>(4, start.size()), byte_at(start, 3))))
    return onnx;
  if (first > 0x80 && first < 0x90 && second > 0xa0 && second < 0xc0 && plain(start.substr(2, second - 0xa0)))
    return flax;
  return std::nullopt;
}

bool is_pickle(std::string_view name) noexcept {
  return name.ends_with(".bin") || name.ends_with(".pt") || name.ends_with(".pth") || name.ends_with(".ckpt") ||
         name.ends_with(".pkl");
}

}  // namespace

std::optional<Foreign> foreign_content(std::string_view start) {
  for (const auto& [mark, what] : marks) {
    if (start.starts_with(mark)) return what;
  }
  constexpr std::size_t tar_mark_at = 257;
  if (start.size() > tar_mark_at && start.substr(tar_mark_at).starts_with("ustar")) return archive;
  const auto blank = [](unsigned char c) { return std::isspace(c) != 0; };
  auto text = start.substr(start.starts_with("\xef\xbb\xbf") ? 3 : 0);
  text.remove_prefix(static_cast<std::size_t>(std::ranges::find_if_not(text, blank) - text.begin()));
  std::string lower(text.substr(0, 64));
  std::ranges::transform(lower, lower.begin(), [](unsigned char c) { return std::tolower(c); });
  for (const auto& [mark, what] : text_marks) {
    if (lower.starts_with(mark)) return what;
  }
  const auto zip = zip_content(start);
  return zip ? zip : named_content(start);
}

std::optional<Foreign> foreign_folder(const std::set<std::string>& names) {
  const auto any = [&](const std::function<bool(std::string_view)>& fits) { return std::ranges::any_of(names, fits); };
  const auto ends = [&](std::string_view ending) { return any([&](auto name) { return name.ends_with(ending); }); };
  const auto starts = [&](std::string_view begin) { return any([&](auto name) { return name.starts_with(begin); }); };
  if (names.contains("zero_to_fp32.py") || starts("global_step") || starts("zero_pp_rank")) return deepspeed;
  if (names.contains("latest_checkpointed_iteration.txt") || names.contains("model_optim_rng.pt") ||
      starts("mp_rank_") || starts("iter_0"))
    return megatron;
  if (names.contains(".metadata") || ends(".distcp") || starts("pytorch_model_fsdp")) return dcp;
  if (names.contains("_CHECKPOINT_METADATA") || names.contains("_METADATA")) return orbax;
  if (starts("consolidated.") && ends(".pth")) return meta;
  if (ends(".gguf")) return gguf;
  if (any(is_pickle)) return pickle;
  if (ends(".msgpack")) return flax;
  if (ends(".h5") || ends(".keras") || names.contains("saved_model.pb")) return keras;
  if (ends(".npz") || ends(".npy")) return numpy;
  if (ends(".onnx") || names.contains("onnx")) return onnx;
  if (ends(".zip") || ends(".tar") || ends(".tar.gz") || ends(".tgz") || ends(".tar.zst") || ends(".tar.xz"))
    return archive;
  return std::nullopt;
}

void refuse_foreign_content(const std::string& path, std::string_view start) {
  const auto found = foreign_content(start);
  if (found) throw Error(ExitCode::bad_data, fmt::format("{} is {}", path, found->what), std::string(found->hint));
}

std::string describe_start(std::string_view start) {
  constexpr std::size_t most_text = 60, most_bytes = 8;
  const auto line = start.substr(0, std::min(start.find('\n'), most_text));
  if (plain(line)) return fmt::format("the text \"{}\"", line);
  start = start.substr(0, 64);
  if (std::ranges::all_of(start, [](char c) { return c == '\0'; })) return "zeros";
  std::string bytes;
  for (const char c : start.substr(0, most_bytes)) bytes += fmt::format(" {:02x}", static_cast<unsigned char>(c));
  return "the bytes" + bytes;
}

}  // namespace weightcast
