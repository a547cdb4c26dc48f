#include "daemon/tier/rocks/store_dir.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "daemon/tier/store_harness.h"

namespace dyna {
namespace {

std::string Content(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

TEST(StoreDir, IsPrivateAndRemembersItsFormat) {
  TempDir tmp;
  const std::string path = tmp / "state/spill";
  {
    const auto dir = StoreDir::Open(path, "format 1");
    ASSERT_TRUE(dir.ok()) << dir.status().ToString();
    EXPECT_EQ(dir->db_path(), path + "/db");
  }
  struct stat st;
  for (const std::string& p : {path, tmp / "state"}) {
    ASSERT_EQ(stat(p.c_str(), &st), 0);
    EXPECT_EQ(st.st_mode & 0777, 0700u) << p;
  }
  EXPECT_EQ(Content(path + "/FORMAT"), "format 1\n");
  EXPECT_TRUE(StoreDir::Open(path, "format 1").ok());
  EXPECT_FALSE(std::filesystem::exists(path + ".set-aside-1"));
}

TEST(StoreDir, AnOpenOneIsMadePrivate) {
  TempDir tmp;
  const std::string path = tmp / "spill";
  ASSERT_EQ(mkdir(path.c_str(), 0755), 0);
  ASSERT_TRUE(StoreDir::Open(path, "format 1").ok());
  struct stat st;
  ASSERT_EQ(stat(path.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777, 0700u);
}

TEST(StoreDir, SaysWhoHasIt) {
  TempDir tmp;
  const auto first = StoreDir::Open(tmp / "bank", "format 1");
  ASSERT_TRUE(first.ok());
  const auto second = StoreDir::Open(tmp / "bank", "format 1");
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), StatusCode::kInvalid);
  EXPECT_NE(second.status().message().find("in use by another daemon"), std::string::npos);
  EXPECT_NE(second.status().message().find(std::to_string(getpid())), std::string::npos);
  // Another format is no reason to move what somebody uses.
  EXPECT_FALSE(StoreDir::Open(tmp / "bank", "format 2").ok());
  EXPECT_FALSE(std::filesystem::exists(tmp / "bank.set-aside-1"));
}

TEST(StoreDir, AnotherFormatIsSetAsideUntouched) {
  TempDir tmp;
  const std::string path = tmp / "spill";
  for (int n = 1; n <= 2; ++n) {
    std::filesystem::create_directories(path);
    std::ofstream(path + "/FORMAT") << "format 0\n";
    std::ofstream(path + "/precious") << n;
    ASSERT_TRUE(StoreDir::Open(path, "format 1").ok());
    EXPECT_EQ(Content(path + "/FORMAT"), "format 1\n");
    const std::string aside = path + ".set-aside-" + std::to_string(n);
    EXPECT_EQ(Content(aside + "/FORMAT"), "format 0\n");
    EXPECT_EQ(Content(aside + "/precious"), std::to_string(n));
    std::filesystem::remove_all(path);
  }
}

TEST(StoreDir, FilesWithoutAFormatAreForeign) {
  TempDir tmp;
  const std::string path = tmp / "spill";
  std::filesystem::create_directories(path);
  std::ofstream(path + "/CURRENT") << "x";
  ASSERT_TRUE(StoreDir::Open(path, "format 1").ok());
  EXPECT_TRUE(std::filesystem::exists(path + ".set-aside-1/CURRENT"));
}

TEST(StoreDir, RefusesWhatIsNotADirectory) {
  TempDir tmp;
  std::ofstream(tmp / "file") << "x";
  EXPECT_EQ(StoreDir::Open(tmp / "file", "format 1").status().code(), StatusCode::kInvalid);
  std::filesystem::create_directories(tmp / "real");
  std::filesystem::create_symlink(tmp / "real", tmp / "link");
  EXPECT_EQ(StoreDir::Open(tmp / "link", "format 1").status().code(), StatusCode::kInvalid);
}

}  // namespace
}  // namespace dyna
