#include <gtest/gtest.h>
#include <unistd.h>

#include <string>

#include "client/test_daemon.h"

extern "C" int run_c_api_test(const char* socket);

namespace dyna {
namespace {

TEST(CApi, WorksFromC) {
  const std::string path = "/tmp/dyna_c_api_test_" + std::to_string(getpid()) + ".sock";
  TestDaemon daemon(path);
  EXPECT_EQ(run_c_api_test(path.c_str()), 0) << "the line of c_api_test.c whose check failed";
}

}  // namespace
}  // namespace dyna
