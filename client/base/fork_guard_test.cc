#include "client/base/fork_guard.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

namespace dyna {
namespace {

TEST(ForkGuardTest, OnlyTheChildIsTold) {
  const ForkGuard guard;
  ASSERT_TRUE(guard.Check().ok());
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const bool own_is_fine = ForkGuard().Check().ok();
    ::_exit(guard.Check().code() == StatusCode::kUnsupported && own_is_fine ? 0 : 1);
  }
  int state = 0;
  ASSERT_EQ(::waitpid(child, &state, 0), child);
  EXPECT_EQ(state, 0);
  EXPECT_TRUE(guard.Check().ok());
}

}  // namespace
}  // namespace dyna
