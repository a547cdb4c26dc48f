#include "client/transport/region.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <thread>

namespace dyna {
namespace {

constexpr uint64_t kMiB = 1 << 20;

UniqueFd Memfd(unsigned flags, uint64_t size, int seals) {
  UniqueFd fd(::memfd_create("test", MFD_CLOEXEC | flags));
  EXPECT_TRUE(fd.valid());
  EXPECT_EQ(::ftruncate(fd.get(), static_cast<off_t>(size)), 0);
  if (seals != 0) {
    EXPECT_EQ(::fcntl(fd.get(), F_ADD_SEALS, seals), 0);
  }
  return fd;
}
StatusCode MapCode(UniqueFd fd, uint64_t size, uint64_t cap = 64 * kMiB) {
  return MappedRegion::Map(std::move(fd), size, cap).status().code();
}
constexpr int kBoth = F_SEAL_SHRINK | F_SEAL_GROW;

class RegionTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(InstallSigbusHandler().ok()); }
};

TEST_F(RegionTest, BothSidesSeeTheSameBytes) {
  const auto region = Region::Allocate(kMiB + 1);
  ASSERT_TRUE(region.ok()) << region.status().ToString();
  EXPECT_EQ((*region)->size(), kMiB + 4096);
  auto mapped =
      MappedRegion::Map(std::move(*(*region)->DuplicateFd()), (*region)->size(), 2 * kMiB);
  ASSERT_TRUE(mapped.ok()) << mapped.status().ToString();
  (*mapped)->Prefault();
  (*region)->bytes()[4097] = std::byte{42};
  EXPECT_EQ((*(*mapped)->Range(4097, 1))[0], std::byte{42});
  (*(*mapped)->Range(0, 2))[1] = std::byte{7};
  EXPECT_EQ((*region)->bytes()[1], std::byte{7});
  EXPECT_EQ(*(*region)->OffsetOf((*region)->bytes().subspan(100, 5)), 100u);
  std::byte elsewhere{};
  EXPECT_EQ((*region)->OffsetOf({&elsewhere, 1}).status().code(), StatusCode::kInvalid);
}

TEST_F(RegionTest, AForkedChildKeepsWhatItHasAtTheSameAddress) {
  auto region = *Region::Allocate(kMiB);
  const pid_t child = ::fork();
  if (child == 0) {
    void* at = region->bytes().data();  // free here: the region did not come along
    if (::mmap(at, kMiB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
               -1, 0) != at)
      ::_exit(2);
    region.reset();
    *static_cast<volatile char*>(at) = 1;  // SIGSEGV when it was unmapped
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

TEST_F(RegionTest, RefusesWhatCouldFaultOrShrink) {
  EXPECT_EQ(MapCode(Memfd(0, kMiB, 0), kMiB), StatusCode::kInvalid);
  EXPECT_EQ(MapCode(Memfd(MFD_ALLOW_SEALING, kMiB, 0), kMiB), StatusCode::kInvalid);
  EXPECT_EQ(MapCode(Memfd(MFD_ALLOW_SEALING, kMiB, F_SEAL_SHRINK), kMiB), StatusCode::kInvalid);
  EXPECT_EQ(MapCode(Memfd(MFD_ALLOW_SEALING, kMiB, F_SEAL_GROW), kMiB), StatusCode::kInvalid);
  EXPECT_EQ(MapCode(Memfd(MFD_ALLOW_SEALING, kMiB, kBoth | F_SEAL_WRITE), kMiB),
            StatusCode::kInvalid);
  EXPECT_EQ(MapCode(Memfd(MFD_ALLOW_SEALING, kMiB, kBoth), kMiB), StatusCode::kOk);
  EXPECT_EQ(MapCode(UniqueFd(::open("/proc/self/exe", O_RDONLY)), 4096), StatusCode::kUnsupported);
  EXPECT_EQ(MapCode(UniqueFd(::open("/dev/zero", O_RDWR)), 4096), StatusCode::kInvalid);
  EXPECT_EQ(MapCode(UniqueFd(), 4096), StatusCode::kInvalid);
  // Huge pages can fault with both seals set.
  UniqueFd huge(::memfd_create("huge", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB));
  if (huge) {
    EXPECT_EQ(MapCode(std::move(huge), 2 * kMiB), StatusCode::kUnsupported);
  }
}

TEST_F(RegionTest, SizesAreChecked) {
  EXPECT_EQ(MapCode(Memfd(MFD_ALLOW_SEALING, kMiB, kBoth), 0), StatusCode::kInvalid);
  EXPECT_EQ(MapCode(Memfd(MFD_ALLOW_SEALING, kMiB, kBoth), kMiB + 1), StatusCode::kInvalid);
  EXPECT_EQ(MapCode(Memfd(MFD_ALLOW_SEALING, kMiB, kBoth), kMiB, kMiB - 1), StatusCode::kTooLarge);
  EXPECT_EQ(MapCode(Memfd(MFD_ALLOW_SEALING, kMiB, kBoth), ~uint64_t{0}), StatusCode::kTooLarge);
  EXPECT_FALSE(Region::Allocate(0).ok());
  EXPECT_FALSE(Region::Allocate(~uint64_t{0}).ok());
}

TEST_F(RegionTest, RangesCannotOverflow) {
  auto mapped = *MappedRegion::Map(Memfd(MFD_ALLOW_SEALING, kMiB, kBoth), kMiB, kMiB);
  EXPECT_TRUE(mapped->Range(0, kMiB).ok());
  EXPECT_TRUE(mapped->Range(kMiB, 0).ok());
  EXPECT_FALSE(mapped->Range(1, kMiB).ok());
  EXPECT_FALSE(mapped->Range(~uint64_t{0}, 2).ok());
  EXPECT_FALSE(mapped->Range(2, ~uint64_t{0}).ok());
  EXPECT_FALSE(mapped->Range(uint64_t{1} << 63, uint64_t{1} << 63).ok());
}

TEST(CheckStridedTest, EveryByteOfEveryRowIsInside) {
  const auto ok = [](uint64_t offset, uint64_t row, std::vector<Axis> axes) {
    return CheckStrided(1000, offset, row, axes).ok();
  };
  EXPECT_TRUE(ok(0, 1000, {}));
  EXPECT_FALSE(ok(1, 1000, {}));
  EXPECT_FALSE(ok(0, 0, {}));
  EXPECT_TRUE(ok(0, 100, {{10, 100}}));
  EXPECT_FALSE(ok(1, 100, {{10, 100}}));
  EXPECT_TRUE(ok(900, 100, {{10, -100}}));
  EXPECT_FALSE(ok(899, 100, {{10, -100}}));
  EXPECT_FALSE(ok(901, 100, {{10, -100}}));
  EXPECT_TRUE(ok(0, 10, {{5, 200}, {20, 10}}));
  EXPECT_FALSE(ok(0, 10, {{5, 200}, {21, 10}}));
  EXPECT_TRUE(ok(990, 10, {{~uint64_t{0}, 0}}));  // the same row again and again
  EXPECT_FALSE(ok(0, 10, {{0, 10}}));
  const int64_t huge[] = {INT64_MAX, INT64_MIN, int64_t{1} << 32, -(int64_t{1} << 32)};
  for (const int64_t stride : huge) {
    for (const uint64_t count : {uint64_t{2}, uint64_t{1} << 31, uint64_t{1} << 32, ~uint64_t{0}}) {
      EXPECT_FALSE(ok(0, 1, {{count, stride}})) << count << " " << stride;
      EXPECT_FALSE(
          ok(500, 1, {{count, stride}, {count, INT64_MIN == stride ? INT64_MAX : -stride}}));
    }
  }
  EXPECT_FALSE(ok(~uint64_t{0}, ~uint64_t{0}, {}));
}

// Hole punching passes both seals. On tmpfs it gives zeros, not a fault.
TEST_F(RegionTest, HolePunchingReadsZeros) {
  UniqueFd fd = Memfd(MFD_ALLOW_SEALING, kMiB, kBoth);
  UniqueFd client(::dup(fd.get()));
  auto mapped = *MappedRegion::Map(std::move(fd), kMiB, kMiB);
  auto bytes = *mapped->Range(0, kMiB);
  std::memset(bytes.data(), 1, bytes.size());
  ASSERT_EQ(::fallocate(client.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kMiB), 0);
  for (size_t i = 0; i < bytes.size(); i += 1000) EXPECT_EQ(bytes[i], std::byte{0});
  EXPECT_FALSE(mapped->poisoned());
}

// What the seals exclude is made by hand: a file that shrinks under a guarded mapping.
TEST_F(RegionTest, AFaultInsideAGuardedRangeIsPoisonedAndZero) {
  UniqueFd fd = Memfd(0, kMiB, 0);
  void* p = ::mmap(nullptr, kMiB, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  ASSERT_NE(p, MAP_FAILED);
  auto* bytes = static_cast<std::byte*>(p);
  std::memset(p, 1, kMiB);
  SigbusGuard guard(bytes, kMiB);
  ASSERT_TRUE(guard.active());
  EXPECT_FALSE(guard.poisoned());
  ASSERT_EQ(::ftruncate(fd.get(), 0), 0);
  std::thread job([&] {
    volatile auto* v = reinterpret_cast<char*>(bytes);
    EXPECT_EQ(char{v[kMiB / 2]}, 0);
    v[kMiB - 1] = 9;
    EXPECT_EQ(char{v[0]}, 0);
  });
  job.join();
  EXPECT_TRUE(guard.poisoned());
  guard.Release();
  ::munmap(p, kMiB);
}

TEST_F(RegionTest, AFaultElsewhereStillEndsTheProcess) {
  const pid_t child = ::fork();
  if (child == 0) {
    UniqueFd fd(::memfd_create("x", 0));
    volatile auto* p =
        static_cast<char*>(::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, fd.get(), 0));
    ::_exit(p[0] == 0 ? 1 : 2);
  }
  int state = 0;
  ::waitpid(child, &state, 0);
  EXPECT_TRUE(WIFSIGNALED(state) && WTERMSIG(state) == SIGBUS) << state;
}

TEST_F(RegionTest, ReleasedRunsAfterTheLastJob) {
  auto mapped = *MappedRegion::Map(Memfd(MFD_ALLOW_SEALING, kMiB, kBoth), kMiB, kMiB);
  bool released = false;
  mapped->OnReleased([&] { released = true; });
  auto job = mapped;
  mapped.reset();
  EXPECT_FALSE(released);
  (*job->Range(0, 1))[0] = std::byte{1};  // still mapped
  std::thread codec([&job] { job.reset(); });
  codec.join();
  EXPECT_TRUE(released);
}

// The client dies: its memory stays as long as we map it.
TEST_F(RegionTest, OutlivesItsClient) {
  int pipe_fds[2];
  ASSERT_EQ(::pipe(pipe_fds), 0);
  UniqueFd fd = Memfd(MFD_ALLOW_SEALING, kMiB, kBoth);
  const pid_t child = ::fork();
  if (child == 0) {
    void* p = ::mmap(nullptr, kMiB, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
    std::memset(p, 5, kMiB);
    if (::write(pipe_fds[1], "x", 1) != 1) ::_exit(1);
    ::pause();
  }
  char c;
  ASSERT_EQ(::read(pipe_fds[0], &c, 1), 1);
  auto mapped = *MappedRegion::Map(std::move(fd), kMiB, kMiB);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  EXPECT_EQ((*mapped->Range(kMiB - 1, 1))[0], std::byte{5});
  EXPECT_TRUE(mapped->CheckIntact().ok());
  ::close(pipe_fds[0]);
  ::close(pipe_fds[1]);
}

TEST_F(RegionTest, AForkedChildDoesNotInheritIt) {
  const auto region = *Region::Allocate(kMiB);
  const pid_t child = ::fork();
  if (child == 0) {
    unsigned char present;
    const bool gone = ::mincore(region->bytes().data(), 4096, &present) != 0 && errno == ENOMEM;
    ::_exit(gone ? 0 : 1);
  }
  int state = 0;
  ::waitpid(child, &state, 0);
  EXPECT_EQ(state, 0);
}

}  // namespace
}  // namespace dyna
