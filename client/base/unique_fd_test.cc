#include "client/base/unique_fd.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <array>
#include <set>

#include "client/base/os.h"

namespace dyna {
namespace {

bool Open(int fd) { return ::fcntl(fd, F_GETFD) >= 0; }

TEST(UniqueFdTest, ClosesOnce) {
  const int raw = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  {
    UniqueFd a(raw);
    UniqueFd b = std::move(a);
    EXPECT_FALSE(a.valid());
    EXPECT_EQ(b.get(), raw);
    EXPECT_TRUE(Open(raw));
  }
  EXPECT_FALSE(Open(raw));
}

TEST(UniqueFdTest, MoveAssignmentClosesWhatItHeld) {
  UniqueFd a(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  UniqueFd b(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  const int old = a.get(), kept = b.get();
  a = std::move(b);
  EXPECT_FALSE(Open(old));
  EXPECT_EQ(a.get(), kept);
  const int released = a.release();
  EXPECT_TRUE(Open(released));
  ::close(released);
}

TEST(OsTest, RandomBytesDiffer) {
  std::set<uint64_t> seen;
  for (int i = 0; i < 64; ++i) EXPECT_TRUE(seen.insert(RandomU64()).second);
}

TEST(OsTest, ErrnoStatusSaysWhat) {
  const Status status = ErrnoStatus("cannot open /x", ENOENT, StatusCode::kInvalid);
  EXPECT_EQ(status.ToString(), "INVALID: cannot open /x: No such file or directory");
}

}  // namespace
}  // namespace dyna
