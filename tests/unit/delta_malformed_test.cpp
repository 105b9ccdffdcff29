// Deltas that were damaged, forged, moved or separated from their bases.
#include <gmock/gmock.h>
#include <hdf5.h>

#include <filesystem>
#include <fstream>
#include <functional>

#include "harness/delta_chain.hpp"
#include "harness/error_of.hpp"
#include "weightcast/core/file.hpp"

namespace weightcast {
namespace {

namespace fs = std::filesystem;
using harness::DeltaTest;
using harness::error_of;
using harness::model_of;
using harness::Weights;
using testing::AllOf;
using testing::HasSubstr;

/// An id of the HDF5 library, closed at the end. Forgeries are made with its own calls.
class Id {
 public:
  explicit Id(hid_t id) : id_(id) { EXPECT_GE(id, 0); }
  ~Id() { H5Idec_ref(id_); }
  Id(Id&&) = delete;
  operator hid_t() const { return id_; }  // NOLINT: for calls

 private:
  hid_t id_;
};

class MalformedDeltaTest : public DeltaTest {
 protected:
  MalformedDeltaTest() {
    for (const std::size_t element : {0UL, 7UL, 8UL, 4095UL, 4096UL, 4999UL}) after_[1][4 * element] ^= std::byte{1};
    after_[0].assign(after_[0].size(), std::byte{5});
    write_whole("0.h5", model_, before_);
    write_delta("1.h5", "0.h5", model_, after_);
  }

  /// Opens and reads 1.h5 after `forge` has been at it: the error; nothing when what it gives is 1.h5's.
  std::optional<Error> after_forgery(const std::function<void(hid_t file)>& forge) const {
    const std::string good = read_text_file(path("1.h5"), 1 << 24);
    {
      const Id access(H5Pcreate(H5P_FILE_ACCESS));
      H5Pset_file_locking(access, false, true);
      const Id file(H5Fopen(path("1.h5").c_str(), H5F_ACC_RDWR, access));
      forge(file);
    }
    const auto outcome = read_back();
    put("1.h5", good);
    return outcome;
  }
  std::optional<Error> read_back() const {
    try {
      const auto snapshot = Snapshot::open(path("1.h5"));
      if (read_all(snapshot, model_) == after_) return std::nullopt;
      return Error(ExitCode::mismatch, "other bytes");
    } catch (const Error& error) {
      return error;
    }
  }
  /// The text of a refusal as bad data.
  std::string refused(const std::function<void(hid_t file)>& forge) const {
    const auto error = after_forgery(forge);
    EXPECT_TRUE(error && error->code() == ExitCode::bad_data) << (error ? error->what() : "accepted");
    return error ? error->what() : "accepted";
  }

  template <typename Number>
  static std::function<void(hid_t)> poke(const std::string& name, std::size_t at, Number value) {
    return [=](hid_t file) {
      const Id set(H5Dopen2(file, ("/delta/" + name).c_str(), H5P_DEFAULT)), type(H5Dget_type(set)),
          space(H5Dget_space(set));
      std::vector<Number> all(static_cast<std::size_t>(H5Sget_simple_extent_npoints(space)));
      ASSERT_EQ(H5Tget_size(type), sizeof(Number));
      ASSERT_GE(H5Dread(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, all.data()), 0);
      all.at(at) = value;
      ASSERT_GE(H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, all.data()), 0);
    };
  }
  static std::function<void(hid_t)> set_text(const std::string& object, const std::string& name,
                                             const std::string& text) {
    return [=](hid_t file) {
      const Id place(H5Oopen(file, object.c_str(), H5P_DEFAULT)), type(H5Tcopy(H5T_C_S1)), space(H5Screate(H5S_SCALAR));
      H5Tset_size(type, std::max<std::size_t>(text.size(), 1));
      H5Tset_strpad(type, H5T_STR_NULLPAD);
      H5Adelete(place, name.c_str());
      const Id attribute(H5Acreate2(place, name.c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT));
      ASSERT_GE(H5Awrite(attribute, type, text.c_str()), 0);
    };
  }
  /// Another dataset in the place of one of b.weight's.
  static std::function<void(hid_t)> replace(const std::string& name, hid_t type, std::vector<hsize_t> shape,
                                            bool chunked = false) {
    return [=](hid_t file) {
      const std::string path = "/delta/b.weight/" + name;
      H5Ldelete(file, path.c_str(), H5P_DEFAULT);
      const Id space(H5Screate_simple(static_cast<int>(shape.size()), shape.data(), nullptr)),
          properties(H5Pcreate(H5P_DATASET_CREATE));
      H5Pset_alloc_time(properties, H5D_ALLOC_TIME_EARLY);
      if (chunked) H5Pset_chunk(properties, static_cast<int>(shape.size()), shape.data());
      const Id set(H5Dcreate2(file, path.c_str(), type, space, H5P_DEFAULT, properties, H5P_DEFAULT));
    };
  }

  const Model model_ = model_of({{"a.weight", DType::BF16, {2, 4096}}, {"b.weight", DType::F32, {5000}}});
  const Weights before_ = harness::model_bytes(model_, 1);
  Weights after_ = before_;
};

TEST_F(MalformedDeltaTest, TheUndamagedOneIsRead) {
  EXPECT_FALSE(after_forgery([](hid_t) {}));
  EXPECT_FALSE(after_forgery(set_text("/", "base", "0.h5")));
}

// b.weight has 6 entries, 4 in its first block and 2 in the second.
TEST_F(MalformedDeltaTest, StartsThatDoNotFit) {
  using U64 = std::uint64_t;
  EXPECT_THAT(refused(poke<U64>("b.weight/starts", 0, 1)), HasSubstr("do not begin at 0"));
  EXPECT_THAT(refused(poke<U64>("b.weight/starts", 2, 5)), HasSubstr("end at 5, not at 6"));
  EXPECT_THAT(refused(poke<U64>("b.weight/starts", 2, ~U64{0})), HasSubstr("not at 6"));
  EXPECT_THAT(refused(poke<U64>("b.weight/starts", 1, 7)), HasSubstr("do not ascend"));
  EXPECT_THAT(refused(poke<U64>("b.weight/starts", 1, ~U64{0})), HasSubstr("do not ascend"));
  EXPECT_THAT(refused(poke<U64>("b.weight/starts", 1, 5)), HasSubstr("indices of block 0 do not ascend"));
  EXPECT_THAT(refused(poke<U64>("a.weight/starts", 1, 4097)), HasSubstr("more entries than elements"));
  EXPECT_THAT(refused(poke<U64>("a.weight/starts", 1, 4095)), HasSubstr("block 1 has more entries than elements"));
}

TEST_F(MalformedDeltaTest, IndicesThatDoNotFit) {
  using U16 = std::uint16_t;
  EXPECT_THAT(refused(poke<U16>("b.weight/indices", 1, 0)),
              AllOf(HasSubstr("1.h5"), HasSubstr("b.weight"), HasSubstr("block 0")));
  EXPECT_THAT(refused(poke<U16>("b.weight/indices", 3, 4096)), HasSubstr("block 0"));
  EXPECT_THAT(refused(poke<U16>("b.weight/indices", 5, 904)), HasSubstr("block 1"));  // 5000 - 4096 elements
  EXPECT_THAT(refused(poke<U16>("b.weight/indices", 5, 65535)), HasSubstr("block 1"));
  EXPECT_THAT(refused(poke<U16>("b.weight/indices", 4, 903)), HasSubstr("block 1"));
  // One that fits, but is another: the digest's business.
  EXPECT_EQ(after_forgery(poke<U16>("b.weight/indices", 1, 6))->code(), ExitCode::mismatch);
}

TEST_F(MalformedDeltaTest, OtherValuesAreFoundByTheDigest) {
  const std::string good = read_text_file(path("1.h5"), 1 << 24);
  for (std::size_t at = 0; at < 6; ++at) {
    EXPECT_EQ(after_forgery(poke<float>("b.weight/values", at, 1.5F))->code(), ExitCode::mismatch);
  }
}

TEST_F(MalformedDeltaTest, DatasetsOfAnotherForm) {
  EXPECT_THAT(refused(replace("indices", H5T_STD_U32LE, {6})), HasSubstr("type of its indices is another"));
  EXPECT_THAT(refused(replace("values", H5T_STD_U32LE, {6})), HasSubstr("type of its values is another"));
  EXPECT_THAT(refused(replace("starts", H5T_STD_I64LE, {3})), HasSubstr("type of its starts is another"));
  EXPECT_THAT(refused(replace("starts", H5T_STD_U64LE, {2})), HasSubstr("2 starts, not 3"));
  EXPECT_THAT(refused(replace("starts", H5T_STD_U64LE, {4})), HasSubstr("4 starts, not 3"));
  EXPECT_THAT(refused(replace("indices", H5T_STD_U16LE, {5})), HasSubstr("5 indices and 6 values"));
  EXPECT_THAT(refused(replace("values", H5T_IEEE_F32LE, {7})), HasSubstr("6 indices and 7 values"));
  EXPECT_THAT(refused(replace("values", H5T_IEEE_F32LE, {2, 3})), HasSubstr("are not a row"));
  EXPECT_THAT(refused(replace("values", H5T_IEEE_F32LE, {6}, true)), HasSubstr("not contiguous"));
  EXPECT_THAT(refused([](hid_t file) {
                replace("indices", H5T_STD_U16LE, {5001})(file);
                replace("values", H5T_IEEE_F32LE, {5001})(file);
              }),
              HasSubstr("do not fit 5000 elements"));
}

TEST_F(MalformedDeltaTest, LinksAndOtherMembers) {
  const auto link = [](const char* from, const char* to) {
    return [=](hid_t file) {
      if (H5Lexists(file, to, H5P_DEFAULT) > 0) H5Ldelete(file, to, H5P_DEFAULT);
      ASSERT_GE(H5Lcreate_hard(file, from, file, to, H5P_DEFAULT, H5P_DEFAULT), 0);
    };
  };
  EXPECT_THAT(refused([](hid_t file) { H5Ldelete(file, "/delta/b.weight/values", H5P_DEFAULT); }),
              HasSubstr("something else than starts, indices and values"));
  EXPECT_THAT(refused(link("/delta/b.weight/starts", "/delta/b.weight/more")), HasSubstr("something else"));
  EXPECT_THAT(refused(link("/delta/b.weight/starts", "/delta/b.weight/values")), HasSubstr("type of its values"));
  EXPECT_THAT(refused(link("/delta/b.weight", "/delta/c.weight")), HasSubstr("share bytes"));
  EXPECT_THAT(refused(link("/delta", "/delta/b.weight")), HasSubstr("something else than starts"));
  EXPECT_THAT(refused(link("/delta", "/parameters")), HasSubstr("something else beside /delta"));
  EXPECT_THAT(refused(link("/delta/b.weight/values", "/delta/c.weight")), HasSubstr("not a group"));
  EXPECT_THAT(refused([](hid_t file) {
                H5Ldelete(file, "/delta/b.weight/values", H5P_DEFAULT);
                H5Lcreate_external("0.h5", "/parameters/b.weight", file, "/delta/b.weight/values", H5P_DEFAULT,
                                   H5P_DEFAULT);
              }),
              HasSubstr("hard links"));
  EXPECT_THAT(refused([](hid_t file) { H5Lmove(file, "/delta/b.weight", file, "/delta/c", H5P_DEFAULT, H5P_DEFAULT); }),
              HasSubstr("its base has no c"));
  // What is left out has the base's bytes and digest: the set's digest is another.
  EXPECT_THAT(refused([](hid_t file) { H5Ldelete(file, "/delta/b.weight", H5P_DEFAULT); }),
              HasSubstr("digest of the set"));
}

TEST_F(MalformedDeltaTest, Attributes) {
  const std::string other(32, 'a');
  EXPECT_THAT(refused(set_text("/", "digest", other)), HasSubstr("digest of the set"));
  EXPECT_THAT(refused(set_text("/delta/b.weight", "digest", other)), HasSubstr("digest of the set"));
  EXPECT_THAT(refused(set_text("/delta/b.weight", "digest", "none")), HasSubstr("32 hexadecimal digits"));
  EXPECT_THAT(
      refused(set_text("/delta/b.weight", "base_digest", other)),
      AllOf(HasSubstr("1.h5"), HasSubstr("b.weight"), HasSubstr(other), HasSubstr(digest_bytes(before_[1], 0).hex())));
  EXPECT_THAT(refused(set_text("/delta/b.weight", "dtype", "F16")), HasSubstr("type of its values"));
  EXPECT_THAT(refused(set_text("/delta/a.weight", "dtype", "F17")), HasSubstr("dtype is unknown"));
  EXPECT_THAT(refused(set_text("/", "format", "weightcast.snapshot")), HasSubstr("beside /parameters"));
  EXPECT_THAT(refused(set_text("/", "format", "weightcast.deltas")), HasSubstr("neither"));
  EXPECT_THAT(refused(set_text("/", "base_digest", other)),
              AllOf(HasSubstr("1.h5 was made against"), HasSubstr(other), HasSubstr("0.h5 has"),
                    HasSubstr(Snapshot::open(path("0.h5")).claimed_digest().hex())));
}

TEST_F(MalformedDeltaTest, ABaseIsAPlainNameInTheSameFolder) {
  fs::create_directory(path("sub"));
  fs::copy_file(path("0.h5"), path("sub/0.h5"));
  for (const std::string name : {"sub/0.h5", "./0.h5", "../0.h5", "", ".", "..", "/0.h5", "sub/../0.h5"})
    EXPECT_THAT(refused(set_text("/", "base", name)), HasSubstr("not the plain name of a file")) << name;
  EXPECT_THAT(refused(set_text("/", "base", path("0.h5"))), HasSubstr("not the plain name"));
  EXPECT_THAT(refused(set_text("/", "base", std::string("0.h5\0x", 6))), HasSubstr("not the plain name"));
  EXPECT_THAT(refused(set_text("/", "base", "\x1b[2J")), HasSubstr("'\\x1b[2J' is not the plain name"));
  EXPECT_THAT(refused(set_text("/", "base", std::string(256, 'a'))), HasSubstr("not the plain name"));
}

TEST_F(MalformedDeltaTest, NoDeltaNotesANameThatIsRefused) {
  fs::copy_file(path("0.h5"), path("a\nb.h5"));
  EXPECT_EQ(error_of([&] { write_delta("2.h5", "a\nb.h5", model_, after_); }).code(), ExitCode::usage);
  EXPECT_FALSE(fs::exists(path("2.h5")));
}

TEST_F(MalformedDeltaTest, BasesThatAreMissingOrWrong) {
  const auto away = error_of([&] {
    fs::rename(path("0.h5"), path("away"));
    Snapshot::open(path("1.h5"));
  });
  EXPECT_EQ(away.code(), ExitCode::no_input);
  EXPECT_THAT(away.what(), AllOf(HasSubstr("the base of " + path("1.h5")), HasSubstr(path("0.h5"))));
  put("0.h5", "something else");
  EXPECT_EQ(read_back()->code(), ExitCode::bad_data);
  EXPECT_THAT(read_back()->what(), AllOf(HasSubstr("the base of " + path("1.h5")), HasSubstr("not an HDF5 file")));
  fs::remove(path("0.h5"));
  fs::create_directory(path("0.h5"));
  EXPECT_EQ(read_back()->code(), ExitCode::no_input);
  fs::remove(path("0.h5"));
  write_whole("0.h5", model_, after_);
  EXPECT_EQ(read_back()->code(), ExitCode::bad_data);
  EXPECT_THAT(read_back()->what(), AllOf(HasSubstr(Snapshot::open(path("away")).claimed_digest().hex()),
                                         HasSubstr(Snapshot::open(path("0.h5")).claimed_digest().hex())));
  fs::rename(path("away"), path("0.h5"));
  EXPECT_FALSE(read_back());
}

TEST_F(MalformedDeltaTest, NothingIsBuiltOnADamagedBase) {
  std::string bytes = read_text_file(path("0.h5"), 1 << 24);
  bytes[bytes.find(std::string(reinterpret_cast<const char*>(before_[1].data()), 64))] ^= 1;
  put("0.h5", bytes);
  const auto error = error_of([&] { write_delta("2.h5", "0.h5", model_, after_); });
  EXPECT_EQ(error.code(), ExitCode::mismatch);
  EXPECT_THAT(error.what(), AllOf(HasSubstr(path("0.h5")), HasSubstr("b.weight")));
  EXPECT_EQ(files(), (std::set<std::string>{"0.h5", "1.h5"}));
}

TEST_F(MalformedDeltaTest, ChainsThatNeverEnd) {
  EXPECT_THAT(refused(set_text("/", "base", "1.h5")), AllOf(HasSubstr("never ends"), HasSubstr("1.h5")));
  write_delta("2.h5", "1.h5", model_, before_);
  EXPECT_THAT(refused(set_text("/", "base", "2.h5")), AllOf(HasSubstr("never ends"), HasSubstr("2.h5")));
  fs::create_symlink("1.h5", path("link.h5"));
  EXPECT_THAT(refused(set_text("/", "base", "link.h5")), HasSubstr("never ends"));
}

TEST_F(MalformedDeltaTest, AChainHasALimit) {
  write_whole("000.h5", model_, before_);
  write_delta("001.h5", "000.h5", model_, before_);
  const std::string one = read_text_file(path("001.h5"), 1 << 24);
  const std::size_t at = one.find("000.h5");
  ASSERT_EQ(one.find("000.h5", at + 1), std::string::npos);
  // Copies, each on the one before; the base's name is in a header with a checksum, so the library writes it.
  for (std::size_t i = 2; i <= Snapshot::chain_limit + 1; ++i) {
    const std::string name = put(fmt::format("{:03}.h5", i), one);
    const Id access(H5Pcreate(H5P_FILE_ACCESS));
    H5Pset_file_locking(access, false, true);
    const Id file(H5Fopen(name.c_str(), H5F_ACC_RDWR, access));
    set_text("/", "base", fmt::format("{:03}.h5", i - 1))(file);
  }
  const auto last = fmt::format("{:03}.h5", Snapshot::chain_limit),
             over = fmt::format("{:03}.h5", Snapshot::chain_limit + 1);
  const auto longest = Snapshot::open(path(last));
  EXPECT_EQ(longest.chain().size(), Snapshot::chain_limit + 1);
  EXPECT_EQ(read_all(longest, model_), before_);
  auto error = error_of([&] { Snapshot::open(path(over)); });
  EXPECT_EQ(error.code(), ExitCode::bad_data);
  EXPECT_THAT(error.what(), AllOf(HasSubstr(over), HasSubstr("more than 100 deltas")));
  error = error_of([&] { write_delta("more.h5", last, model_, after_); });
  EXPECT_EQ(error.code(), ExitCode::config);
  EXPECT_FALSE(fs::exists(path("more.h5")));
}

TEST_F(MalformedDeltaTest, CutOffAnywhere) {
  const std::string good = read_text_file(path("1.h5"), 1 << 24);
  for (std::size_t size = 1; size < good.size(); size += size < 6000 ? 797 : 19973) {
    put("1.h5", good.substr(0, size));
    EXPECT_EQ(read_back()->code(), ExitCode::bad_data) << "after " << size << " bytes";
  }
}

/// Wherever a byte changes, the file is refused, or reads as before, or the digest tells.
TEST_F(MalformedDeltaTest, FlippedBytesAreNeverServedAsTheVersion) {
  const std::string good = read_text_file(path("1.h5"), 1 << 24);
  std::size_t refused = 0, other = 0;
  for (std::size_t position = 4096; position < good.size(); position += position < 12'000 ? 61 : 1499) {
    std::string bad = good;
    bad[position] = static_cast<char>(bad[position] ^ 0x41);
    fs::remove(path("1.h5"));
    put("1.h5", bad);
    const auto error = read_back();
    if (!error) continue;
    EXPECT_TRUE(error->code() == ExitCode::bad_data || error->code() == ExitCode::mismatch) << error->what();
    ++(error->code() == ExitCode::bad_data ? refused : other);
    if (error->code() != ExitCode::mismatch) continue;
    const auto snapshot = Snapshot::open(path("1.h5"));
    bool told = false;
    const auto bytes = read_all(snapshot, model_);
    for (std::size_t p = 0; p < bytes.size(); ++p) {
      told = told || digest_bytes(bytes[p], 0) !=
                         snapshot.claimed_digests()[index_of(snapshot, model_.parameters[p].info.name)];
    }
    EXPECT_TRUE(told) << position;
  }
  EXPECT_GT(refused, 20U);
  EXPECT_GT(other, 5U);
}

}  // namespace
}  // namespace weightcast
