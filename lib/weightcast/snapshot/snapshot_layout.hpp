#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "weightcast/core/function_ref.hpp"
#include "weightcast/model/parameter_rules.hpp"
#include "weightcast/snapshot/hdf5_handle.hpp"
#include "weightcast/snapshot/snapshot.hpp"

/// The parts of format.md that writers and the reader share. Internal to snapshot.
namespace weightcast::snapshot_layout {

inline constexpr std::uint64_t user_block_bytes = 4096;
inline constexpr std::uint32_t format_version = 1;
inline constexpr char format_name[] = "weightcast.snapshot", delta_format_name[] = "weightcast.delta",
                      user_block_schema[] = "weightcast.snapshot/1";
inline constexpr std::size_t digest_digits = 32;

/// Whether this can be the name of a base: of a file in the same folder, at most 255 bytes, without control characters.
bool plain_file_name(const std::string& name);
/// The user block, exactly user_block_bytes long; `base_version`: of a delta. Error(config) when the settings do not
/// fit.
std::string make_user_block(const SnapshotInfo& info, std::optional<std::uint64_t> base_version = {});
/// The version in it. Error(bad_data), naming `path`, when it is not what make_user_block() makes.
std::uint64_t parse_user_block(std::string_view text, const std::string& path);

/// What one dataset adds to a file at most, beside its name.
std::uint64_t most_bytes_of(std::uint64_t data_bytes) noexcept;
/// Size of a file without datasets.
std::uint64_t most_bytes_of_empty() noexcept;
/// Size that the file will not exceed. A reservation of as much, before anything is made, keeps the library from
/// meeting a full disk: after a failed close HDF5 1.10 crashes when the process ends.
std::uint64_t most_bytes(const Model& model);
/// A new file of that format with these attributes and no digest. `path` is only for messages. Error(cant_create).
Hdf5Id create_file(const std::string& file_name, const char* format, const Model& model, const std::string& path);
Hdf5Id create_group(hid_t place, const std::string& name);
/// A dataset whose bytes are set aside in the file, at once, and not filled.
Hdf5Id create_dataset(hid_t place, const std::string& name, hid_t type, const std::vector<std::uint64_t>& shape);
/// An attribute of fixed length.
void add_text(hid_t object, const char* name, const std::string& text);
/// Makes the file with all datasets and attributes, its data still unwritten and its digests zero. One process; the
/// file is open through the default driver. `path` is only for messages. Error(cant_create), Error(config).
Hdf5Id create(const std::string& file_name, const Model& model, const std::string& path);
/// Fills in the digest attributes.
void set_digests(hid_t file, const Model& model, std::span<const Digest> digests);
/// Sets the disk space of the closed file aside. Error(io_error) when there is not enough.
void reserve(const std::string& file_name, const std::string& path);

/// A rectangle of a parameter, in elements of its matrix view, written from dense rows at `data`. Cut into pieces of
/// 16 MiB: the MPI-IO driver fails on 2 GiB, and a signal waits until a piece is written. `between` is called before
/// each and may throw. Shapes of three dimensions at most.
void write(hid_t file, const TensorInfo& info, const Slice& slice, const std::byte* data,
           FunctionRef<void()> between = {});
/// `count` numbers from `first` on of a dataset of one dimension.
void write_row(hid_t file, const std::string& name, hid_t type, std::uint64_t first, std::uint64_t count,
               const void* data);

}  // namespace weightcast::snapshot_layout
