#include "weightcast/core/output_folder.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"

namespace weightcast {
namespace {
namespace fs = std::filesystem;

constexpr std::size_t most_names = 5;

[[noreturn]] void cannot_create(const std::string& path, const std::string& reason, const std::string& hint) {
  throw Error(ExitCode::cant_create, fmt::format("cannot create the folder {}: {}", path, reason), hint);
}

/// Names in a folder, in order, without those of unfinished output in it.
std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    if (auto name = entry->path().filename().string(); !temporary_of("", name)) names.push_back(std::move(name));
  }
  if (error) cannot_create(folder, error.message(), "write to a folder that you may read");
  std::ranges::sort(names);
  return names;
}

std::string describe(const std::string& folder, std::vector<std::string> names) {
  std::uint64_t bytes = 0;
  for (const auto& name : names) {
    std::error_code ignored;
    if (fs::is_regular_file(folder + "/" + name, ignored)) bytes += fs::file_size(folder + "/" + name, ignored);
  }
  std::string text;
  for (std::size_t i = 0; i < std::min(names.size(), most_names); ++i)
    text += (i > 0 ? ", " : "") + printable(names[i]);
  if (names.size() > most_names) text += fmt::format(" and {} more", names.size() - most_names);
  return fmt::format("{} ({})", text, format_size(bytes));
}

/// Whether the process runs in that folder or below it.
bool runs_in(const std::string& folder) {
  std::error_code error;
  const auto outer = fs::canonical(folder, error), inner = fs::current_path(error);
  return !error && std::ranges::mismatch(outer, inner).in1 == outer.end();
}

/// For file systems that cannot exchange two names.
int replace_in_two_steps(const std::string& from, const std::string& to) {
  const std::string old = from + ".old";
  if (std::rename(to.c_str(), old.c_str()) != 0) return -1;
  if (rename_new(from, to) != 0) {
    const int error = errno;
    std::rename(old.c_str(), to.c_str());
    errno = error;
    return -1;
  }
  std::error_code ignored;
  fs::remove_all(old, ignored);
  return 0;
}

}  // namespace

OutputFolder::OutputFolder(const std::string& path, Existing existing) : path_(path) {
  std::string name = path;
  while (name.size() > 1 && name.ends_with('/')) name.pop_back();
  target_ = follow_links(name);
  std::error_code error;
  const auto status = fs::status(target_, error);
  if (fs::is_directory(status)) {
    const auto names = names_in(target_);
    fill_ = names.empty();
    if (!fill_ && existing == Existing::refuse) {
      cannot_create(path_, "there is one already, with " + describe(target_, names),
                    "choose another name, or replace all of it with --force");
    }
    if (!fill_ && runs_in(target_))
      cannot_create(path_, "it would replace the folder in which this program runs", "choose another name");
    if (!fill_) there_ = identify(target_);
  } else if (fs::exists(status)) {
    cannot_create(path_, "a file has that name", "choose another name");
  } else {
    fs::create_directories(split_path(target_).first, error);
    if (error) cannot_create(path_, error.message(), "write to a folder that you may create");
  }
  stage_ = std::make_unique<Temporary>(fill_ ? target_ + "/" : target_, Temporary::Kind::folder, true, path_);
}

std::string OutputFolder::shown(const std::string& name) const {
  return target_ + "/" + name;
}

std::size_t OutputFolder::add(const std::string& name, std::uint64_t reserve_bytes) {
  File file{name, {}, std::make_unique<Unfinished>(stage_->path() + "/" + name, true)};
  file.fd.reset(::open(file.unfinished->path().c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  if (!file.fd) fail(ExitCode::cant_create, "cannot create {}: {}", shown(name), std::strerror(errno));
  if (reserve_bytes > 0) reserve_space(file.fd.get(), reserve_bytes, shown(name));
  files_.push_back(std::move(file));
  return files_.size() - 1;
}

void OutputFolder::write(std::size_t file, std::uint64_t offset, std::span<const std::byte> source) const {
  write_at(files_[file].fd.get(), offset, source, shown(files_[file].name));
}

void OutputFolder::commit() {
  for (const File& file : files_) sync_to_disk(file.fd.get(), shown(file.name));
  sync_folder(stage_->path());
  for (const File& file : files_) file.unfinished->hold();
  stage_->hold();
  if (fill_) {
    fill_folder();
  } else {
    take_name();
  }
  for (const File& file : files_) file.unfinished->keep();
  sync_folder(fill_ ? target_ : split_path(target_).first);
}

void OutputFolder::fill_folder() {
  const FolderLock lock(target_);
  if (!names_in(target_).empty()) written_by_others(path_);
  for (std::size_t i = 0; i < files_.size(); ++i) {
    if (rename_new(files_[i].unfinished->path(), shown(files_[i].name)) == 0) continue;
    const int error = errno;
    while (i-- > 0) ::unlink(shown(files_[i].name).c_str());
    if (error == EEXIST) written_by_others(path_);
    fail(ExitCode::io_error, "cannot rename a file into {}: {}", path_, std::strerror(error));
  }
}

void OutputFolder::take_name() {
  const FolderLock lock(split_path(target_).first);
  if (identify(target_) != there_) written_by_others(path_);
  const auto& stage = stage_->path();
  int status = 0;
  if (there_) {
    status = ::renameat2(AT_FDCWD, stage.c_str(), AT_FDCWD, target_.c_str(), RENAME_EXCHANGE);
    if (status == 0) return;  // what was there has the temporary name now, and goes with it
    if (errno == EINVAL) status = replace_in_two_steps(stage, target_);
  } else {
    status = rename_new(stage, target_);
  }
  if (status != 0 && (errno == EEXIST || errno == ENOTEMPTY)) written_by_others(path_);
  if (status != 0) fail(ExitCode::io_error, "cannot rename {} to {}: {}", stage, target_, std::strerror(errno));
  stage_->keep();
}

}  // namespace weightcast
